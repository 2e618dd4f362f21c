"""What all tests share. No framework is imported here: each test brings the ones that it needs."""

import os
from collections import defaultdict

import numpy as np
import pytest
from covering import covering

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

pytest.register_assert_rewrite("conformance")  # tests that other files subclass

#: Set where every optional package is installed, so that nothing is skipped without being noticed.
REQUIRE_ALL = os.environ.get("WHENCE_REQUIRE_ALL") == "1"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Run the whole suite on all processors, unless ``-n`` or ``--pdb`` says otherwise; some files here."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if whole and not is_worker and not config.option.usepdb and _not_said(config, "numprocesses"):
        config.option.numprocesses = os.cpu_count() or 1
        config.option.dist = "worksteal"
        # Each has its processor; more threads of BLAS than that wait for each other.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def _not_said(config, option):
    return getattr(config.option, option, 0) is None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as slow what ``pairwise`` leaves out, before ``-m`` is looked at."""
    tables = defaultdict(list)
    for item in items:
        if item.get_closest_marker("pairwise") and not item.get_closest_marker("slow"):
            tables[item.nodeid.split("[")[0]].append(item)
    for cases in tables.values():
        # A value of a parameter is one object in all its cases, and need not be hashable.
        chosen = covering([tuple(id(value) for value in case.callspec.params.values()) for case in cases])
        for position in set(range(len(cases))).difference(chosen):
            cases[position].add_marker(pytest.mark.slow)


def _refuse_skip(report):
    if REQUIRE_ALL and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: {reason} (WHENCE_REQUIRE_ALL=1 allows no skip)"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Turn a skipped test into a failed one where everything is required."""
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """Turn a skipped module (``importorskip`` at its top) into an error likewise."""
    return _refuse_skip((yield))


@pytest.fixture
def rng():
    """Random numbers, the same in every run and for every test."""
    return np.random.default_rng(0)


@pytest.fixture(params=["numpy", "array_api_strict", "torch"])
def xp(request):
    """A namespace of arrays that follows the standard; the second one allows nothing beyond it."""
    return pytest.importorskip(request.param)
