mkdir -p /etc
# Who tcpdump becomes.
echo tcpdump:x:0:0::/:/bin/sh > /etc/passwd
reaches() { await ping -q -c 1 -W 2 $PEER; }
recorded() { [ "$(wc -c < /tmp/frames.pcap)" -gt 1000 ]; }
# Sends the stream; how much of what was handed to the VF was longer than its MTU.
sends() {
    head -c $STREAM /dev/urandom > /tmp/stream
    tcpdump -U --immediate-mode -w /tmp/frames.pcap -s 64 -i eth0 tcp dst port $PORT 2> /tmp/tcpdump.log &
    recorder=$!
    await grep -q 'listening on' /tmp/tcpdump.log
    nc $PEER $PORT < /tmp/stream || return 1
    await recorded
    kill -INT $recorder
    wait $recorder
    large=$(tcpdump -nn -r /tmp/frames.pcap greater 1600 2> /dev/null | wc -l)
    [ $large -gt 0 ] || { cat /tmp/tcpdump.log; return 1; }
    answer $large
}
checksum() { answer "$(md5sum < /tmp/stream | cut -d' ' -f1)"; }
