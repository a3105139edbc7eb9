REBOOT=
lab_with_nic
start_guest --memory 384
weigh 100
await said MARK L2 pinged VF
: > /tmp/console
type_in $ANEW
await said MARK L2 pinged VF
type_in true
wait $guest
logs
