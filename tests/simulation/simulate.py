"""`make simulate`: every end of two scripted lives, then random ones. ROUNDS=… seeds from SEED=… on, or that one seed.
FAULT=… plants one of `campaign.planted`, or with `all` each of them, and looks for a seed that finds it."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from campaign.everywhere import scripted, try_everywhere
from campaign.lives import Campaign, Totals
from campaign.planted import FAULTS, MOST_SEEDS, seeds_until_found
from campaign.planting import plant
from campaign.process import listen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="the first seed; without it the clock gives one")
    parser.add_argument("--rounds", type=int, help="how many seeds; 1 when a seed is given, else 200")
    parser.add_argument("--go-on", action="store_true", help="do not stop at the first seed that fails")
    parser.add_argument("--fault", choices=[*FAULTS, "all"], help="to plant")
    options = parser.parse_args()
    listen()
    if options.fault is not None:
        return plant([*FAULTS] if options.fault == "all" else [options.fault], seeds_until_found, "seed", MOST_SEEDS)
    if options.seed is None:
        states = sum(try_everywhere(life) for sync in (True, False) for life in scripted(sync=sync))
        print(f"{states:,} ends of scripted lives", flush=True)
    return live(options.seed, options.rounds, options.go_on)


def live(seed: int | None, rounds: int | None, go_on: bool) -> int:
    first = seed if seed is not None else time.time_ns() // 1000 % 1_000_000_000
    rounds = rounds or (1 if seed is not None else 200)
    totals, failed, began = Totals(), [], time.monotonic()
    print(f"seeds {first} to {first + rounds - 1}", flush=True)
    for seed in range(first, first + rounds):
        try:
            Campaign(seed, totals).run()
        except KeyboardInterrupt:
            break
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding
            traceback.print_exc()
            failed.append(seed)
            if not go_on:
                break
        if (seed - first) % 100 == 99:
            print(f"{time.monotonic() - began:.0f} s: {totals}", flush=True)
    print(f"{time.monotonic() - began:.0f} s: {totals}; {len(failed)} seeds failed {failed or ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
