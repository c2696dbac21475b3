"""Runs the functions of a client's suite and prints a line for each: `ok name` or `FAILED name: why`."""

import sys
import traceback


def run(suite):
    failed = 0
    for check in suite:
        try:
            check()
            print(f"ok {check.__name__}", flush=True)
        except Exception as error:  # whatever the client throws is the result
            failed += 1
            print(f"FAILED {check.__name__}: {type(error).__name__}: {error}", flush=True)
            traceback.print_exc(file=sys.stderr)
    sys.exit(1 if failed else 0)
