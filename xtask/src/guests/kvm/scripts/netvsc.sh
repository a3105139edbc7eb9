lab none <<'END'
[[switch]]
name = "lab"
socket = "/tmp/switch/control.sock"
END
start_guest --memory 256
wait $guest
logs
