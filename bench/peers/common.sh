# Shared by the peers' scripts. Sourced, not run.
#
# usage: NAME rate SIZE SECONDS | NAME round-trip SIZE SECONDS

set -euo pipefail

: "${FORWARDER_CPU:=0}" "${CLIENT_CPU:=1}"
: "${BUILD:=${TMPDIR:-/tmp}/clearway-peers}"
: "${VIRTIO_CLIENT:=$BUILD/virtio_client}"
# How the clients' rings are: those by which the peers are fastest.
: "${VIRTIO_DEVICE:=packed_vq=1,vectorized=1,in_order=1,mrg_rxbuf=0}"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
what=${1:-rate} size=${2:-64} seconds=${3:-2}
work=$(mktemp -d "${TMPDIR:-/tmp}/peer.XXXXXX")
started=()

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Ends what was started here, in reverse order, and waits for it.
cleanup() {
    local status=$? pid
    for ((i = ${#started[@]} - 1; i >= 0; i--)); do
        pid=${started[i]}
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# wait_for SECONDS TEST...: until a test(1) expression holds.
wait_for() {
    local until=$((SECONDS + $1))
    shift
    until test "$@"; do
        ((SECONDS < until)) || fail "still not: test $*"
        sleep 0.05
    done
}

case $what in
rate) mode=() ;;
round-trip) mode=(--latency) ;;
*) fail "usage: $(basename "$0") rate|round-trip SIZE SECONDS" ;;
esac
[[ -x $VIRTIO_CLIENT ]] || fail "$VIRTIO_CLIENT is missing; bench/peers/run builds it"

# Rings by frame size: those at which the peers are fastest.
if [[ -z ${RING:-} ]]; then
    if ((size <= 256)); then RING=1024; elif ((size <= 2048)); then RING=512; else RING=256; fi
fi

# run_client SOCKET_A SOCKET_B: both ends of the traffic, on the client's CPU.
run_client() {
    local device="$VIRTIO_DEVICE,queue_size=$RING"
    taskset -c "$CLIENT_CPU" timeout "$((${seconds%.*} + 30))" "$VIRTIO_CLIENT" \
        --lcores "0@$CLIENT_CPU" --no-pci --in-memory --single-file-segments -m 256 \
        --force-max-simd-bitwidth=512 --file-prefix="client$$" --log-level=error \
        --vdev "net_virtio_user0,path=$1,$device" \
        --vdev "net_virtio_user1,path=$2,$device" \
        -- --size "$size" --seconds "$seconds" --ring "$RING" "${mode[@]}"
}

# with_busy RESULT NANOSECONDS: the client's line, with how long the forwarder was at work for each frame, without the
# turns in which nothing had come, as it says itself.
with_busy() {
    if [[ $what == rate ]]; then
        echo "${1%\}},\"busy_ns\":$2}"
    else
        echo "$1"
    fi
}
