lab_with_nic
start_guest --memory 384
weigh 100
await said MARK L2 pinged VF
kill -9 $adapter
await said MARK L2 pinged without
adapter
await is Active
wait $guest
logs
