# What guests that ping have at hand. Whoever only asks `ping` takes for lost what is late, which on an emulated machine
# may be seconds; the kernel counts.

# Echo requests without an answer since the machine booted; less than none if answers came twice.
unanswered() {
    awk '/^Icmp:/ { if (!fields) fields = split($0, name); else for (i = 1; i <= fields; i++) count[name[i]] = $i }
        END { print count["OutEchos"] - count["InEchoReps"] }' /proc/net/snmp
}
# Pings; whether every request was answered, a minute later at the latest.
none_lost() {
    before=$(unanswered)
    ping -q "$@" || return 1
    tries=0
    until [ "$(unanswered)" -le "$before" ]; do
        tries=$((tries + 1))
        [ $tries -gt 60 ] && return 1
        sleep 1
    done
}
