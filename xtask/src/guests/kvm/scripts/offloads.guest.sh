mkdir -p /etc
# Who tcpdump becomes.
echo tcpdump:x:0:0::/:/bin/sh > /etc/passwd
synthetic_nic
ip addr add 10.79.0.2/24 dev eth0
head -c 1000000 /dev/urandom > /tmp/stream
echo MARK L2 sends "$(md5sum < /tmp/stream)"
# Sends the stream when told; what the stack hands to this interface has segments that are longer than its MTU.
send() {
    tcpdump -w /tmp/frames.pcap -s 64 -i $1 tcp dst port 5001 2> /tmp/tcpdump.log &
    recorder=$!
    await grep -q 'listening on' /tmp/tcpdump.log
    read line
    nc 10.79.0.1 5001 < /tmp/stream || echo MARK L2 failed nc says $?
    kill -INT $recorder
    wait $recorder
    large=$(tcpdump -nn -r /tmp/frames.pcap greater 1600 2> /dev/null | wc -l)
    [ $large -gt 0 ] && echo "MARK L2 has sent large segments by $1: $large" || {
        cat /tmp/tcpdump.log
        echo MARK L2 failed no large segments by $1
    }
}
echo MARK L2 is ready
send eth0
await log_says Data path switched to VF
echo MARK L2 is on its VF
send eth1
# Until the host has looked.
read line
