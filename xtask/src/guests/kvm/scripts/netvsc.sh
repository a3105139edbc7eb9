lab none <<'END'
[[switch]]
name = "lab"
socket = "/tmp/switch/control.sock"
END
start_guest
wait $guest
logs
