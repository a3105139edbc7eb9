lab_with_nic
start_guest --memory ${MEMORY:-384}
weigh 100
wait $guest
logs
