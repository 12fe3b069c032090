#!/bin/sh
# Lets ksmtuned steer KSM: prints the values that pages_to_scan takes until it is 1250, `run` and
# sleep_millisecs then, and `run` when ksmtuned finds that there is memory enough.
#
# usage: tuner.sh KSMTUNED DIRECTORY
set -eu

ksmtuned=$1
cd /sys/kernel/mm/ksm
export PIDFILE="$2/pid" KSM_MONITOR_INTERVAL=1
trap 'kill "$(cat "$PIDFILE")"' EXIT

# $1 tells whether it has come.
await() {
    tries=3000
    until $1; do
        tries=$((tries - 1))
        if [ $tries = 0 ]; then echo "waited too long for $1" >&2 && exit 1; fi
        sleep 0.02
    done
}

last=
is_at_its_fastest() {
    now=$(cat pages_to_scan)
    [ "$now" = "$last" ] || echo "$now"
    last=$now
    [ "$now" = 1250 ]
}
is_stopped() { [ "$(cat run)" = 0 ]; }

# No machine has twice the memory that it has free: it starts, and goes faster and faster.
KSM_THRES_COEF=200 "$ksmtuned"
await is_at_its_fastest
cat run sleep_millisecs
kill "$(cat "$PIDFILE")"
KSM_THRES_COEF=0 KSM_THRES_CONST=0 "$ksmtuned"
await is_stopped
cat run pages_to_scan
