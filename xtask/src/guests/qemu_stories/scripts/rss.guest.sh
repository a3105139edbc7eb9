vectors() { [ "$(grep -c iavf-eth0-TxRx /proc/interrupts)" = $1 ]; }
queues() { await vectors $1 && await sends eth0; }
packets() { ethtool -S eth0 | awk '$1 ~ /^rx-[0-3]\.packets:$/ { print $2 }'; }
# What each of the first four queues receives in two seconds.
received() {
    sleep 1
    packets > /tmp/before
    sleep 2
    packets > /tmp/after
    answer $(awk 'NR == FNR { before[NR] = $1; next } { print $1 - before[FNR] }' /tmp/before /tmp/after)
}
queues_in_table() {
    answer "$(ethtool -x eth0 | sed -n 's/^ *[0-9][0-9]*:  *//p' | tr -s ' ' '\n' | grep . | sort -u | wc -l)"
}
only_two_queues() { ethtool -X eth0 equal 2 xfrm none; }
