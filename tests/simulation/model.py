"""`make model`: random consumers, and what they were told, judged. STEPS=… of SEED=…; FAULT=… plants one of
`consumption.planted`, or with `all` each of them, and looks whether it is found."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "conformance"))

from campaign.planting import plant
from campaign.process import listen
from consumption.lives import LIVES, STEPS, live
from consumption.planted import FAULTS, MOST_LIVES, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() // 1000 % 1_000_000_000, help="or the clock gives one"
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--fault", choices=[*FAULTS, "all"], help="to plant")
    options = parser.parse_args()
    listen()
    if options.fault is not None:
        return plant([*FAULTS] if options.fault == "all" else [options.fault], found, "life", MOST_LIVES)
    for kind in LIVES:
        began = time.monotonic()
        wrong = live(kind, seed=options.seed, lives=options.steps // STEPS // len(LIVES))
        took = f"{kind.__name__}, seed {options.seed}: {kind.lives:,} lives, {kind.steps:,} steps"
        print(f"{took}, {kind.crashes:,} ends of the server, {time.monotonic() - began:.0f} s", flush=True)
        if wrong is not None:
            print(wrong[1])
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
