"""Rehearses a training on two machines, which are namespaces of Linux on this one.

    python benchmarks/two_nodes.py [--only CASE ...] [--keep FOLDER]

Each machine has its own network, host name, /etc/hosts, /dev/shm and local disk; a bridge joins them, and they share
the file system. The tiny models of tests/golden are trained on the CPU with gloo and ZeRO-2, a process per machine,
started by the scripts in examples/. Processes are killed, the link is cut, disks are not shared; then the run is
resumed and compared with an unbroken run of two processes on one machine, to the last bit.

It needs Linux, `unshare`, `nsenter` and `ip`, and root or user namespaces for everyone. It uses no address outside of
its namespaces. Namespaces and processes end with this command, also after Ctrl-C or kill -9. One JSON line per case is
printed on stdout; the exit code is 1 if a case failed. No GPU is used: NCCL is not part of the rehearsal.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from nodes.cases import CASES, run_case, unbroken
from nodes.cluster import why_not
from nodes.run import Workplace, alignkd


def main() -> None:
    """Run the chosen cases."""
    names = [case.__name__ for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, metavar="CASE", default=names, help=", ".join(names))
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="Keep runs and logs in this folder.")
    options = parser.parse_args()
    if (problem := why_not()) is not None:
        sys.exit(f"two_nodes: no namespaces on this machine: {problem}")
    with tempfile.TemporaryDirectory(prefix="two-nodes-") as temporary:
        place = Workplace(folder=(options.keep or Path(temporary)).resolve())
        chosen = [case for case in CASES if case.__name__ in options.only]
        sys.exit(0 if rehearse(place, chosen) else 1)


def rehearse(place: Workplace, cases: list) -> bool:
    """Make the store and the unbroken run, then run the cases; whether all went well."""
    config = place.config(place.folder / "first")
    if not place.store.exists():
        alignkd("dump", config, folder=config.parent)
    well = True
    for case in (unbroken, *cases):
        line = run_case(case, place)
        print(json.dumps(line), flush=True)
        well &= line["ok"]
        if case is unbroken and not line["ok"]:
            return False
    return well


if __name__ == "__main__":
    main()
