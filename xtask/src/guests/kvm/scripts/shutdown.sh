lab none <<'END'
[[switch]]
name = "lab"
socket = "/tmp/switch/control.sock"
END
start_guest --memory 256
await said MARK L2 waits
clearway vm stop web || echo MARK failed vm stop says $?
wait $guest
logs
