/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_BENCH_FRAMES_H
#define TESTS_BENCH_FRAMES_H 1

/* The frames that a benchmark judges, as both candidates get them: shortest frames (64 bytes
 * with the checksum of the wire) between VM a (10.0.0.1) or some remote address and VM b
 * (10.0.0.2).  A connection is a number: its pair of ports, or its address and port. */

#include <stdint.h>
#include <string.h>

#include "timing.h"

#define FRAME 60
#define FRAME6 62 /* IPv6 and UDP without data */
#define FRAME_ROOM 64
#define FRAMES_MAX_CONNS (32u << 20) /* 1000 ports of one end, 32768 of the other */

#define FRAME_SYN 2
#define FRAME_ACK 16

/* TCP or UDP between two IPv4 addresses. */
struct frame_flow {
    uint32_t src, dst;
    uint16_t sport, dport;
    int tcp;
};

static inline void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v);
}

static inline uint32_t sum16(uint32_t sum, const uint8_t *p, unsigned n)
{
    for (unsigned i = 0; i < n; i += 2)
        sum += (uint32_t)p[i] << 8 | p[i + 1];
    return sum;
}

static inline uint32_t fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return ~(sum + (sum >> 16)) & 0xffff;
}

static inline uint32_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 20);
}

/* Sent by a (back 0) or by b (back 1). */
static inline void frame_macs(uint8_t *f, int back, uint32_t ethertype)
{
    static const uint8_t mac[2][6] = {{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}};

    memcpy(f, mac[!back], 6);
    memcpy(f + 6, mac[back], 6);
    put16(f + 12, ethertype);
}

/* TCP: neither side sends data, so that the same acknowledgement is right for ever. */
static inline void frame_of(uint8_t f[FRAME_ROOM], const struct frame_flow *w, int back,
                            uint8_t flags)
{
    uint8_t *ip = f + 14, *l4 = f + 34;

    memset(f, 0, FRAME_ROOM);
    frame_macs(f, back, 0x0800);
    ip[0] = 0x45;
    put16(ip + 2, w->tcp ? 40 : FRAME - 14); /* the rest of a TCP frame is padding */
    ip[8] = 64;
    ip[9] = w->tcp ? 6 : 17;
    put32(ip + 12, w->src);
    put32(ip + 16, w->dst);
    put16(ip + 10, fold(sum16(0, ip, 20)));
    put16(l4, w->sport);
    put16(l4 + 2, w->dport);
    if (!w->tcp) {
        put16(l4 + 4, FRAME - 34);
        return;
    }
    put32(l4 + 4, flags & FRAME_SYN ? 1000 : 1001);
    if (flags & FRAME_ACK)
        put32(l4 + 8, 1001);
    l4[12] = 0x50;
    l4[13] = flags;
    put16(l4 + 14, 0x4000);
    put16(l4 + 16, fold(sum16(6 + 20, ip + 12, 8) + sum16(0, l4, 20)));
}

static inline uint32_t frame_port_a(uint32_t c)
{
    return 1024 + (c & 0x7fff);
}

static inline uint32_t frame_port_b(uint32_t c)
{
    return 1000 + (c >> 15);
}

/* Connection c between a and b, opened by a. */
static inline void frame_make(uint8_t f[FRAME_ROOM], int tcp, uint32_t c, int back, uint8_t flags)
{
    uint16_t port[2] = {(uint16_t)frame_port_a(c), (uint16_t)frame_port_b(c)};
    struct frame_flow w = {0x0a000001u + (uint32_t)back, 0x0a000001u + !back, port[back],
                           port[!back], tcp};

    frame_of(f, &w, back, flags);
}

/* The same over IPv6 (fd00::1, fd00::2), UDP only. */
static inline void frame_make6(uint8_t f[FRAME_ROOM], uint32_t c, int back)
{
    uint32_t port[2] = {frame_port_a(c), frame_port_b(c)};
    uint8_t *ip = f + 14, *udp = f + 54;

    memset(f, 0, FRAME_ROOM);
    frame_macs(f, back, 0x86dd);
    ip[0] = 0x60;
    put16(ip + 4, 8);
    ip[6] = 17;
    ip[7] = 64;
    ip[8] = ip[24] = 0xfd;
    ip[23] = (uint8_t)(1 + back);
    ip[39] = (uint8_t)(1 + !back);
    put16(udp, port[back]);
    put16(udp + 2, port[!back]);
    put16(udp + 4, 8);
    put16(udp + 6, fold(sum16(17 + 8, ip + 8, 32) + sum16(0, udp, 8)));
}

#endif /* tests/bench/frames.h */
