lab_with_nic
stack set-adapter web net0 --vlan 7 || echo MARK failed vlan
start_guest --memory 384
await said MARK L2 talked synthetic
weigh 100
wait $guest
kill $adapter
wait $adapter
echo MARK capture
xxd -p /tmp/uplink.pcap
echo MARK captured
logs
