lab_with_nic
start_guest --memory 384
weigh 100
has_reason() { stack status | grep -q '\[GuestNoVfDriver\]'; }
await has_reason
stack status
type_in done
wait $guest
logs
