#!/bin/sh
# Run every line of the Procfile until Ctrl-C. What each prints goes to $DATA/NAME.log, and is shown here.
# `saturnmq` and `python` are those of PATH: `. .venv/bin/activate` first.
cd "$(dirname "$0")" || exit
export DATA="${DATA:-data}"
mkdir -p "$DATA"
pids=
while IFS= read -r line; do
    case $line in '#'*) continue ;; esac
    sh -c "${line#*: }" > "$DATA/${line%%:*}.log" 2>&1 &
    pids="$pids $!"
done < Procfile
trap 'kill $pids' INT TERM
tail -n +1 -f "$DATA"/*.log &
wait $pids
# the trap has ended it: what is still to come is how they end
wait $pids
kill $!
wait
