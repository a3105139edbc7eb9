lab_with_nic
take_stream
start_guest --memory 384
await said MARK L2 pinged synthetic
weigh 100
await is Active
await said MARK L2 under traffic
round=0
while [ $round -lt $ROUNDS ]; do
    round=$((round + 1))
    weigh 0
    await is Synthetic
    weigh 100
    await is Active
    [ $((round % 10)) = 0 ] && echo "$round of $ROUNDS rounds"
done
echo MARK revoked and returned $round times
type_in done
wait $guest
compare_stream
logs
