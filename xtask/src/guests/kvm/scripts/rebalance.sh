lab_with_nic
take_stream
start_guest --memory 384
weigh 100
await said MARK L2 under traffic
clearway nic --directory /tmp/nic rebalance || echo MARK failed rebalance
await is Active
type_in done
wait $guest
compare_stream
logs
