/*
 * Generator and sink in one poll loop on one core: what sits at both ends of the switches that Clearway is
 * measured against. Port 0 sends, port 1 receives; both are virtio-user devices of DPDK.
 *
 * It touches a frame as `clearway bench forward` does with two VFs: the sender writes every cache line of the frame,
 * the receiver reads every cache line, and a frame counts when the sink has read it. Unlike there, the buffer of a
 * frame that was read is written and sent again: with buffers of the pool for each, this program would be slower
 * than what is between its ports, and be what is measured.
 *
 * Prints one line of JSON. Built by `run` against Debian's libdpdk-dev.
 */
#include <errno.h>
#include <inttypes.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

#define MAX_BURST 64
#define HEADERS 42 /* Ethernet, IPv4, UDP */
#define MAX_SAMPLES 400000
#define STOCK 1024

enum touch { TOUCH_NONE, TOUCH_ALL };

static unsigned frame_len = 64, burst = 32, ring = 1024;
static double seconds = 2, warmup = 0.5;
static enum touch touch = TOUCH_ALL;
static bool latency;
static uint64_t reads; /* keeps the reads of the sink alive */

/* 10.0.0.1:1 to 10.0.0.2:2 in UDP, from 02:..:01 to 02:..:02. */
static void write_headers(uint8_t *at)
{
	static const uint8_t head[HEADERS] = {
		2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0,
		0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
		0, 1, 0, 2, 0, 0, 0, 0,
	};
	uint32_t sum = 0;
	memcpy(at, head, HEADERS);
	at[16] = (frame_len - 14) >> 8, at[17] = (uint8_t)(frame_len - 14);
	at[38] = (frame_len - 34) >> 8, at[39] = (uint8_t)(frame_len - 34);
	for (int i = 14; i < 34; i += 2)
		sum += at[i] << 8 | at[i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~((sum & 0xffff) + (sum >> 16));
	at[24] = (uint8_t)(sum >> 8), at[25] = (uint8_t)sum;
}

static void init_mbuf(struct rte_mempool *pool, void *unused, void *object, unsigned index)
{
	(void)pool, (void)unused, (void)index;
	struct rte_mbuf *m = object;
	uint8_t *at = (uint8_t *)m->buf_addr + RTE_PKTMBUF_HEADROOM;
	memset(at, 0x5a, frame_len);
	write_headers(at);
}

static inline void write_lines(struct rte_mbuf *m, uint64_t number)
{
	uint8_t *at = rte_pktmbuf_mtod(m, uint8_t *);
	m->data_len = frame_len;
	m->pkt_len = frame_len;
	if (touch == TOUCH_NONE && !latency)
		return;
	/* Eight bytes into each line; the first behind the headers. */
	*(volatile uint64_t *)(at + 48) = number;
	for (unsigned line = 64; line + 8 <= frame_len; line += 64)
		*(volatile uint64_t *)(at + line) = number;
}

static inline uint64_t number_of(const struct rte_mbuf *m)
{
	return *rte_pktmbuf_mtod_offset(m, const uint64_t *, 48);
}

static inline void read_lines(struct rte_mbuf *m)
{
	const uint8_t *at = rte_pktmbuf_mtod(m, uint8_t *);
	uint64_t sum = 0;
	if (touch == TOUCH_NONE)
		return;
	sum += *(const volatile uint64_t *)(at + 48);
	for (unsigned line = 64; line + 8 <= m->data_len; line += 64)
		sum += *(const volatile uint64_t *)(at + line);
	reads += sum;
}

static void die(const char *what, int error)
{
	fprintf(stderr, "virtio_client: %s: %s\n", what, rte_strerror(error < 0 ? -error : error));
	exit(1);
}

static void open_port(uint16_t port, struct rte_mempool *pool)
{
	struct rte_eth_conf conf = {0};
	struct rte_eth_dev_info info;
	uint16_t rx = ring, tx = ring;
	int error = rte_eth_dev_info_get(port, &info);
	if (error)
		die("no such port; both --vdev are needed", error);
	conf.rxmode.mtu = frame_len > 1514 ? frame_len - 14 : 1500;
	if (conf.rxmode.mtu > info.max_mtu)
		conf.rxmode.mtu = info.max_mtu;
	if ((error = rte_eth_dev_configure(port, 1, 1, &conf)))
		die("configure", error);
	if ((error = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rx, &tx)))
		die("ring size", error);
	if ((error = rte_eth_rx_queue_setup(port, 0, rx, SOCKET_ID_ANY, NULL, pool)))
		die("rx queue", error);
	if ((error = rte_eth_tx_queue_setup(port, 0, tx, SOCKET_ID_ANY, NULL)))
		die("tx queue", error);
	if ((error = rte_eth_dev_start(port)))
		die("start", error);
}

struct counts {
	uint64_t sent, received, bytes, full, send_calls, empty, receive_calls;
};

/* Buffers that are free for sending; at their end there is room for a burst, whether received or allocated. */
static struct rte_mbuf *stock[STOCK + MAX_BURST];
static unsigned stocked;

static inline void receive(struct counts *counts)
{
	struct rte_mbuf **got = stock + stocked;
	unsigned count = rte_eth_rx_burst(1, 0, got, burst);

	counts->receive_calls++;
	counts->empty += count == 0;
	counts->received += count;
	for (unsigned i = 0; i < count; i++)
		__builtin_prefetch(rte_pktmbuf_mtod(got[i], void *), 1); /* it is written next */
	for (unsigned i = 0; i < count; i++) {
		read_lines(got[i]);
		counts->bytes += got[i]->pkt_len;
	}
	stocked += count;
	if (stocked > STOCK) {
		rte_pktmbuf_free_bulk(stock + STOCK, stocked - STOCK);
		stocked = STOCK;
	}
}

static inline void send_burst(struct rte_mempool *pool, struct counts *counts)
{
	struct rte_mbuf **out;
	unsigned sent;

	if (stocked < burst) {
		if (rte_pktmbuf_alloc_bulk(pool, stock + stocked, burst))
			return;
		stocked += burst;
	}
	out = stock + stocked - burst;
	for (unsigned i = 0; i < burst; i++)
		write_lines(out[i], counts->sent + i);
	sent = rte_eth_tx_burst(0, 0, out, burst);
	counts->send_calls++;
	counts->full += sent == 0;
	counts->sent += sent;
	if (sent != 0 && sent < burst)
		memmove(out, out + sent, (burst - sent) * sizeof(*out));
	stocked -= sent;
}

static inline void step(struct rte_mempool *pool, struct counts *counts)
{
	receive(counts);
	send_burst(pool, counts);
}

static void run(struct rte_mempool *pool, double duration, struct counts *counts)
{
	uint64_t end = rte_get_tsc_cycles() + (uint64_t)(duration * rte_get_tsc_hz());
	memset(counts, 0, sizeof(*counts));
	do {
		for (int i = 0; i < 64; i++)
			step(pool, counts);
	} while (rte_get_tsc_cycles() < end);
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

/* One frame at a time, from the send to the sink's read. */
static void run_latency(struct rte_mempool *pool)
{
	static uint32_t samples[MAX_SAMPLES];
	uint64_t hz = rte_get_tsc_hz(), lost = 0, number = 1u << 30;
	uint64_t start = rte_get_tsc_cycles();
	uint64_t begin = start + (uint64_t)(warmup * hz), end = begin + (uint64_t)(seconds * hz);
	unsigned count = 0;
	while (rte_get_tsc_cycles() < end && count < MAX_SAMPLES) {
		struct rte_mbuf *m = rte_pktmbuf_alloc(pool), *got;
		uint64_t sent_at, deadline;
		if (!m)
			die("out of mbufs", ENOMEM);
		write_lines(m, ++number);
		sent_at = rte_get_tsc_cycles();
		deadline = sent_at + hz / 100;
		while (rte_eth_tx_burst(0, 0, &m, 1) == 0)
			;
		for (;;) {
			if (rte_eth_rx_burst(1, 0, &got, 1) == 1) {
				bool mine = number_of(got) == number;
				read_lines(got);
				rte_pktmbuf_free(got);
				if (mine)
					break;
			} else if (rte_get_tsc_cycles() > deadline) {
				lost++;
				goto next;
			}
		}
		if (sent_at >= begin)
			samples[count++] = (uint32_t)(rte_get_tsc_cycles() - sent_at);
next:;
	}
	if (count == 0)
		die("no frame came back", ETIMEDOUT);
	qsort(samples, count, sizeof(*samples), compare);
	double ns = 1e9 / hz;
	printf("{\"size\":%u,\"samples\":%u,\"lost\":%" PRIu64
	       ",\"rtt_ns_median\":%.1f,\"rtt_ns_p99\":%.1f,\"rtt_ns_min\":%.1f}\n",
	       frame_len, count, lost, samples[count / 2] * ns, samples[count - 1 - count / 100] * ns,
	       samples[0] * ns);
}

static void options(int argc, char **argv)
{
	static const struct option list[] = {
		{"size", required_argument, NULL, 's'},   {"seconds", required_argument, NULL, 't'},
		{"warmup", required_argument, NULL, 'w'}, {"burst", required_argument, NULL, 'b'},
		{"ring", required_argument, NULL, 'r'},   {"touch", required_argument, NULL, 'o'},
		{"latency", no_argument, NULL, 'l'},      {0},
	};
	int option;
	while ((option = getopt_long(argc, argv, "", list, NULL)) != -1) {
		switch (option) {
		case 's': frame_len = (unsigned)atoi(optarg); break;
		case 't': seconds = atof(optarg); break;
		case 'w': warmup = atof(optarg); break;
		case 'b': burst = (unsigned)atoi(optarg); break;
		case 'r': ring = (unsigned)atoi(optarg); break;
		case 'o': touch = strcmp(optarg, "none") ? TOUCH_ALL : TOUCH_NONE; break;
		case 'l': latency = true; break;
		default: exit(2);
		}
	}
	if (frame_len < 64 || frame_len > 9600 || burst < 1 || burst > MAX_BURST) {
		fprintf(stderr, "virtio_client: --size 64..9600, --burst 1..%d\n", MAX_BURST);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	int used = rte_eal_init(argc, argv);
	if (used < 0)
		die("EAL", rte_errno);
	options(argc - used, argv + used);

	unsigned room = RTE_PKTMBUF_HEADROOM + (frame_len <= 2048 ? 2048 : 9728);
	struct rte_mempool *pool =
		rte_pktmbuf_pool_create("frames", ring * 4 + 1023, 256, 0, room, SOCKET_ID_ANY);
	if (!pool)
		die("mempool", rte_errno);
	rte_mempool_obj_iter(pool, init_mbuf, NULL);
	open_port(0, pool);
	open_port(1, pool);

	/* A learning switch learns where the sink is. */
	struct rte_mbuf *hello = rte_pktmbuf_alloc(pool);
	if (!hello)
		die("out of mbufs", ENOMEM);
	write_lines(hello, 0);
	uint8_t *head = rte_pktmbuf_mtod(hello, uint8_t *), address[6];
	memcpy(address, head, 6);
	memcpy(head, head + 6, 6);
	memcpy(head + 6, address, 6);
	while (rte_eth_tx_burst(1, 0, &hello, 1) == 0)
		rte_delay_us_sleep(1000);

	/* The other side has seen both rings once a frame comes through. */
	struct counts counts = {0};
	uint64_t end = rte_get_tsc_cycles() + 10 * rte_get_tsc_hz();
	while (counts.received == 0) {
		step(pool, &counts);
		rte_delay_us_sleep(1000); /* let the switch's control threads have the core */
		if (rte_get_tsc_cycles() > end)
			die("no frame came through in 10 s", ETIMEDOUT);
	}
	if (latency) {
		double drain = 0.2;
		struct rte_mbuf *got;
		uint64_t until = rte_get_tsc_cycles() + (uint64_t)(drain * rte_get_tsc_hz());
		while (rte_get_tsc_cycles() < until)
			if (rte_eth_rx_burst(1, 0, &got, 1))
				rte_pktmbuf_free(got);
		run_latency(pool);
	} else {
		run(pool, warmup, &counts);
		uint64_t start = rte_get_tsc_cycles();
		run(pool, seconds, &counts);
		double took = (double)(rte_get_tsc_cycles() - start) / rte_get_tsc_hz();
		printf("{\"size\":%u,\"seconds\":%.4f,\"sent\":%" PRIu64 ",\"received\":%" PRIu64
		       ",\"frames_per_second\":%.0f,\"bytes_per_second\":%.0f"
		       ",\"send_ring_full\":%.3f,\"receive_ring_empty\":%.3f,\"check\":%" PRIu64 "}\n",
		       frame_len, took, counts.sent, counts.received, counts.received / took,
		       counts.bytes / took, (double)counts.full / counts.send_calls,
		       (double)counts.empty / counts.receive_calls, reads & 1);
	}
	fflush(stdout);
	rte_eth_dev_stop(0);
	rte_eth_dev_stop(1);
	rte_eth_dev_close(0);
	rte_eth_dev_close(1);
	rte_eal_cleanup();
	return 0;
}
