"""Run the ```python blocks of Markdown files, those of one file in order and in one process.

Blocks that are not meant to run are fenced as ```py. Usage: run_markdown.py FILE_OR_FOLDER...
"""

import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"^```python[^\S\n]*\n(.*?)^```[^\S\n]*$", re.MULTILINE | re.DOTALL)


def code_of(path: Path) -> str:
    """Return the file's code with everything else blanked, so that line numbers stay true."""
    text = path.read_text(encoding="utf-8")
    code, line = [], 0
    for block in BLOCK.finditer(text):
        start = text.count("\n", 0, block.start(1))
        code.append("\n" * (start - line) + block.group(1))
        line = start + block.group(1).count("\n")
    return "".join(code)


def main(arguments: list[str]) -> int:
    failed = []
    for argument in map(Path, arguments):
        files = sorted(argument.rglob("*.md")) if argument.is_dir() else [argument]
        for path in files:
            code = code_of(path)
            if not code.strip():
                continue
            print(f"-- {path}", flush=True)
            runner = "import sys; exec(compile(sys.stdin.read(), sys.argv[1], 'exec'))"
            done = subprocess.run([sys.executable, "-c", runner, str(path)], input=code, text=True)
            if done.returncode:
                failed.append(path)
    for path in failed:
        print(f"FAILED {path}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
