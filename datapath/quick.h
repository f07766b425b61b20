/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_QUICK_H
#define MOAT_DP_QUICK_H 1

/* The straight line through parse, guard and key for the packet that nearly all are:
 * untagged, unicast, whole IPv4 without options; UDP, or TCP with ACK and without SYN, FIN
 * and RST; from the vNIC's MAC and first address, if it comes from the VM.
 *
 * It may only say yes where the long way (moat_parse(), moat_guard_from_vm(),
 * moat_session_key()) finds nothing wrong and makes the same key: test_quick.c compares
 * them on mutated frames.  Anything else, and every doubt, takes the long way. */

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "moat/flow.h"

#include "parse.h"
#include "session.h"
#include "slot.h"

static inline uint32_t moat_quick_32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, 4);
    return v;
}

static inline uint16_t moat_quick_16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, 2);
    return v;
}

static inline uint16_t moat_quick_be16(const uint8_t *p)
{
    return __builtin_bswap16(moat_quick_16(p));
}

/* Offsets in a frame of this kind. */
enum {
    MOAT_Q_SMAC = 6,
    MOAT_Q_TYPE = 12,
    MOAT_Q_IP = 14,
    MOAT_Q_TOTAL = 16,
    MOAT_Q_FRAG = 20,
    MOAT_Q_PROTO = 23,
    MOAT_Q_SRC = 26,
    MOAT_Q_DST = 30,
    MOAT_Q_L4 = 34,
    MOAT_Q_BYTES = 54, /* up to the end of a TCP header */
};

/* Ethertype IPv4, version 4 and 5 words of header; no fragment; unicast MAC and addresses;
 * the IP packet lies within the frame. */
static inline __attribute__((always_inline)) bool moat_quick_ip4(const struct moat_pkt *p,
                                                                 uint32_t total)
{
    const uint8_t *d = p->data;
    uint32_t odd = (moat_quick_16(d + MOAT_Q_TYPE) ^ 0x0008u) | (d[MOAT_Q_IP] ^ 0x45u) |
                   (moat_quick_16(d + MOAT_Q_FRAG) & 0xff3fu) | (d[0] & 1u) |
                   (d[MOAT_Q_SRC] >= 224) | (d[MOAT_Q_DST] >= 224) | (MOAT_Q_IP + total > p->total);

    return !odd;
}

/* It is the VM's own MAC and first address, and the slot looks at both. */
static inline __attribute__((always_inline)) bool moat_quick_own(const struct moat_view *v,
                                                                 const uint8_t *d)
{
    return moat_quick_32(d + MOAT_Q_SMAC) == moat_quick_32(v->mac) &&
           moat_quick_16(d + MOAT_Q_SMAC + 4) == moat_quick_16(v->mac + 4) &&
           moat_quick_32(d + MOAT_Q_SRC) == moat_quick_32(v->addrs[0].addr) &&
           v->addrs[0].family == MOAT_FAM_IP4 && v->settings.spoof != MOAT_SPOOF_OFF;
}

/* What is sent to a DHCP port is the guard's. */
static inline __attribute__((always_inline)) bool moat_quick_dhcp(const uint8_t *d, uint16_t dport)
{
    return d[MOAT_Q_PROTO] == 17 && (uint16_t)(dport - 67) <= 1;
}

static inline __attribute__((always_inline)) bool moat_quick_udp(struct moat_pkt *p, uint32_t total)
{
    uint32_t len = moat_quick_be16(p->data + MOAT_Q_L4 + 4);

    p->kind = MOAT_PKT_UDP;
    return total >= 28 && len >= 8 && len <= total - 20;
}

static inline __attribute__((always_inline)) bool moat_quick_tcp(struct moat_pkt *p, uint32_t total)
{
    const uint8_t *t = p->data + MOAT_Q_L4;
    uint32_t header = (uint32_t)(t[12] >> 4) * 4;

    p->kind = MOAT_PKT_TCP;
    p->tcp.seq = __builtin_bswap32(moat_quick_32(t + 4));
    p->tcp.ack = __builtin_bswap32(moat_quick_32(t + 8));
    p->tcp.flags = t[13] & 0x3f;
    p->tcp.win = moat_quick_be16(t + 14);
    p->tcp.len = total - 20 - header;
    p->tcp.wscale = 0;
    return header >= 20 && header + 20 <= total && MOAT_Q_L4 + header <= p->len &&
           (t[13] & (MOAT_TCP_ACK | MOAT_TCP_SYN | MOAT_TCP_FIN | MOAT_TCP_RST)) == MOAT_TCP_ACK;
}

/* True: p has kind, tcp, src and dst, and *k is its key; the other fields are not set.
 * False: nothing is known. */
static inline __attribute__((always_inline)) bool moat_quick(const struct moat_view *v,
                                                             struct moat_pkt *p,
                                                             const enum moat_dir dir,
                                                             struct moat_key *k)
{
    const uint8_t *d = p->data;
    uint16_t sport, dport;
    uint32_t total;

    if (__builtin_expect(p->len < MOAT_Q_BYTES, 0))
        return false;
    total = moat_quick_be16(d + MOAT_Q_TOTAL);
    sport = moat_quick_be16(d + MOAT_Q_L4);
    dport = moat_quick_be16(d + MOAT_Q_L4 + 2);
    if (__builtin_expect(!moat_quick_ip4(p, total) || !sport || !dport, 0))
        return false;
    if (dir == MOAT_FROM_VM &&
        __builtin_expect(!moat_quick_own(v, d) || moat_quick_dhcp(d, dport), 0))
        return false;
    if (d[MOAT_Q_PROTO] == 17 ? !moat_quick_udp(p, total)
                              : d[MOAT_Q_PROTO] != 6 || !moat_quick_tcp(p, total))
        return false;
    p->src = d + MOAT_Q_SRC;
    p->dst = d + MOAT_Q_DST;
    k->tag = v->tag;
    k->local = moat_quick_32(dir == MOAT_FROM_VM ? p->src : p->dst);
    k->remote = moat_quick_32(dir == MOAT_FROM_VM ? p->dst : p->src);
    k->lport = dir == MOAT_FROM_VM ? sport : dport;
    k->rport = dir == MOAT_FROM_VM ? dport : sport;
    k->vlan = 0;
    k->proto = d[MOAT_Q_PROTO];
    k->family = MOAT_FAM_IP4;
    return true;
}

#endif /* datapath/quick.h */
