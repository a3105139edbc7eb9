# A guest whose virtio-net (eth1) is joined with a VF that comes and goes (eth2), as eth0.

synthetic_nic() { # address
    await says /sys/class/net/eth0/addr_len 6
    ip addr add $1/24 dev eth0
    ip link set eth0 up
    await sends eth1
}
# Waits until it sends by its VF, or until it has none.
on_vf() { await sends eth2 && says /sys/class/net/eth2/address "$(cat /sys/class/net/eth0/address)"; }
no_vf() { [ ! -e /sys/class/net/eth2 ]; }
off_vf() { await no_vf; }
# Waits until a ping is answered.
reaches() { await ping -q -c 1 -W 2 "$1"; }
# Five pings of each size, all of which are answered.
pings() { none_lost -c 5 -i 0.2 "$1" && none_lost -c 5 -i 0.2 -s 1400 "$1"; }
has_sent() { [ $(($(count $1 tx_packets) - before_sent)) -ge 10 ]; }
# The same, and this interface has sent them; iavf counts every now and then.
pings_by() { # interface, address
    before_sent=$(count $1 tx_packets)
    pings "$2" && await has_sent $1
}
# Takes TCP streams, and measures one.
serves() { ip link set lo up; iperf3 -s -D; }
throughput() { # address
    iperf3 -c "$1" -t 3 -f m > /tmp/iperf3 2>&1 || { cat /tmp/iperf3; return 1; }
    answer "$(awk '/receiver/ { print $7, $8 }' /tmp/iperf3)"
}
