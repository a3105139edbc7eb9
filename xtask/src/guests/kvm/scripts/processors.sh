CHANNELS=2
lab_with_nic
stack set-adapter web net0 --queue-pairs 2 || echo MARK failed queue pairs
start_guest --memory 384 --processors 2
weigh 100
wait $guest
logs
