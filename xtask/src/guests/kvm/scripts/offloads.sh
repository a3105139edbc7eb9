# The physical port is an interface of L1's, which has a TCP peer behind it, in the VLAN of the guest's port.
UPLINK=tap:phys0
lab_with_nic
mkdir -p /etc
# Who tcpdump becomes.
echo tcpdump:x:0:0::/:/bin/sh > /etc/passwd
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
ip link add link phys0 name phys7 type vlan id 7 || echo MARK failed vlan
ip addr add 10.79.0.1/24 dev phys7
ip link set phys0 up
ip link set phys7 up
stack set-adapter web net0 --vlan 7 || echo MARK failed vlan
start_guest --memory 512
frames() { tcpdump -nn -e -vv -r /tmp/frames.pcap "$@" 2> /dev/null; }
received() { [ "$(wc -c < /tmp/received)" = $1 ]; }
# What the guest sends on a path, as it is on the wire.
record() {
    tcpdump -w /tmp/frames.pcap -i phys0 vlan and tcp dst port 5001 2> /tmp/tcpdump.log &
    recorder=$!
    await grep -q 'listening on' /tmp/tcpdump.log
    take_stream
    type_in go
    await said "MARK L2 has sent large segments by $2"
    await received 1000000
    kill -INT $recorder
    wait $recorder
    [ "$(md5sum < /tmp/received)" = "$(tr -d '\r' < /tmp/console | sed -n 's/^MARK L2 sends //p')" ] ||
        echo MARK failed $1: it is not what was sent
    # With its tag a frame has at most 1518 bytes; of a segment 1448 are the stream's.
    large=$(frames greater 1519 | wc -l)
    wrong=$(frames | grep -c 'incorrect\|bad cksum')
    right=$(frames | grep -c '(correct)')
    foreign=$(frames | grep 'ethertype 802.1Q' | grep -vc '^[^ ]* 00:15:5d:00:00:01 .*vlan 7,')
    [ $large = 0 ] && [ $wrong = 0 ] && [ $foreign = 0 ] && [ $right -ge 690 ] &&
        echo "MARK $1: whole, in frames of the MTU, $right with right checksums" ||
        echo "MARK failed $1: $right are right, $wrong have wrong checksums, $large are too long, $foreign are not the VM's"
}
await said MARK L2 is ready
record synthetic eth0
weigh 100
await said MARK L2 is on its VF
record VF eth1
type_in done
wait $guest
logs
