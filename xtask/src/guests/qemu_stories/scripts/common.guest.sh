# What scripts of guests have at hand, but for pings.

# Seconds since it booted.
now() { cut -d. -f1 /proc/uptime; }
# Waits until a command succeeds, four minutes at most.
await() {
    late=$(($(now) + 240))
    until "$@" > /tmp/awaited 2>&1; do
        [ "$(now)" -gt $late ] && { dmesg; cat /tmp/awaited; echo "MARK failed this did not come: $*"; return 1; }
        usleep 100000
    done
}
# Whether a file says this.
says() { [ "$(cat "$1" 2> /dev/null)" = "$2" ]; }
# Whether an interface sends: it has a carrier, and the queueing discipline that it gets a moment later.
sends() { ip link show "$1" | grep -q LOWER_UP && ! ip link show "$1" | grep -q 'qdisc noop'; }
count() { cat "/sys/class/net/$1/statistics/$2"; }
answer() { echo "MARK answer $*"; }
answer_count() { answer "$(count "$@")"; }

# What no kernel may have said since it was last looked at.
clean_log() {
    dmesg -c > /tmp/log
    grep -E 'WARNING:|BUG:|Call Trace|blocked for more than|NETDEV WATCHDOG' /tmp/log > /tmp/bad
    if [ -s /tmp/bad ]; then cat /tmp/bad; echo MARK failed errors in the log; else echo MARK log is clean; fi
}
clean_log_so_far() { clean_log > /tmp/said; ! grep -v 'MARK log is clean' /tmp/said; }

# Does what the host says, line by line, until it says `end`.
obey() {
    echo MARK obeys
    while read -r line < /dev/ttyS0; do
        [ "$line" = end ] && break
        if $line; then echo "MARK done $line"; else echo "MARK failed $line"; fi
    done
    clean_log
}
