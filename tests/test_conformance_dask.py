"""The cases of ``conformance`` on clusters of processes: the same numbers, whatever the framework."""

import itertools
from collections.abc import Mapping

import clusters
import pytest
from conformance import Conformance

pytest.importorskip("distributed")
pytestmark = pytest.mark.slow


def know_plain_networks():
    """Have a worker know the networks in plain NumPy, as the test does here."""
    import conformance

    return conformance.__name__


@pytest.fixture(scope="class")
def client(request):
    with clusters.small_parts(6, rows=7), clusters.cluster(request.cls.n_workers) as made:
        clusters.by_value(__name__)
        made.run(know_plain_networks)
        yield made


class OnWorkers(Conformance):
    """Each method with an index of its own, in a folder that all workers reach."""

    n_workers: int

    @pytest.fixture
    def options(self, client, tmp_path):
        return Options(client, tmp_path)


class Options(Mapping):
    """Arguments with another folder each time that they are taken."""

    def __init__(self, client, folder):
        self.client = client
        self.folders = (folder / f"index-{number}" for number in itertools.count())

    def __getitem__(self, name):
        return self.client if name == "engine" else next(self.folders)

    def __iter__(self):
        return iter(("engine", "index_path"))

    def __len__(self):
        return 2


class TestOnTwoWorkers(OnWorkers):
    n_workers = 2


class TestOnFourWorkers(OnWorkers):
    n_workers = 4
    test_bad_data = test_bad_models = test_bad_calls = None  # once is enough: they are not about numbers
