"""The performance table: every room's benchmarks in one run, printed and kept in reports/bench.json.

make bench
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import cli
from common.bench import Entry, met, table
from common.errors import UserError
from common.files import write_json

ROOMS = ("pretrain.bench", "transfer.bench", "detection.bench")  # modules that write their entries to `--json FILE`


def main(argv: Sequence[str] | None = None) -> None:
    """Run every room's benchmarks, one process after another, and write the whole table."""
    parser = cli.Parser("tools.bench", __doc__ or "", "make bench")
    parser.add_argument("--reports", default=Path("reports"), type=cli.path, help="where bench.json goes")
    args = parser.parse_args(argv)
    path = args.reports / "bench.json"
    print(f"[tools.bench] {', '.join(ROOMS)} -> {path.resolve()}; leave the machine alone meanwhile", flush=True)
    entries: list[Entry] = []
    with tempfile.TemporaryDirectory() as folder:
        for module in ROOMS:
            part = Path(folder) / f"{module}.json"
            done = subprocess.run([sys.executable, "-m", module, "--json", str(part)], check=False)
            if done.returncode:
                raise UserError(f"{module} failed; what it printed says why")
            entries += json.loads(part.read_text())
            write_json(path, entries)  # after each room, so that a later failure loses nothing
    print(table(entries), flush=True)
    missed = [entry["id"] for entry in entries if not met(entry)]
    print(
        f"{len(entries)} measured, {len(missed)} missed their target{': ' if missed else ''}{', '.join(missed)}  {path}"
    )


if __name__ == "__main__":
    cli.run(main)
