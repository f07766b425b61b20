/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_QUICK_H
#define MOAT_DP_QUICK_H 1

/* The straight line through parse, guard and key for the packet that nearly all are:
 * untagged, unicast, whole IPv4 without options; UDP, or TCP with ACK and without SYN, FIN
 * and RST; from the vNIC's MAC and first address, if it comes from the VM.  And, for those who ask
 * for it, the SYN: what floods are made of should cost little until the rules admit it.
 *
 * It may only say yes where the long way (moat_parse(), moat_guard_from_vm(),
 * moat_session_key()) finds nothing wrong and makes the same key: test_quick.c compares
 * them on mutated frames.  Anything else, and every doubt, takes the long way.
 *
 * Two vectors of 16 bytes have nearly all that is looked at:
 *
 *   frame bytes 6-21   source MAC, ethertype, version, total length, fragment: compared with
 *                      what they must be
 *   frame bytes 23-38  protocol, addresses, ports: put into the order of a key by one shuffle;
 *                      what is odd about them is found there
 *
 * What is odd is collected in one vector, and asked for once.  Needs SSE4.1, as DPDK does. */

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <smmintrin.h>

#include "moat/flow.h"

#include "parse.h"
#include "session_private.h"
#include "slot.h"

/* Offsets in a frame of this kind. */
enum {
    MOAT_Q_HEAD = 6,
    MOAT_Q_TOTAL = 16,
    MOAT_Q_TAIL = 23,
    MOAT_Q_PROTO = 23,
    MOAT_Q_SRC = 26,
    MOAT_Q_DST = 30,
    MOAT_Q_L4 = 34,
    MOAT_Q_BYTES = 54,      /* up to the end of a TCP header */
    MOAT_Q_PADDING = 65535, /* behind the IP packet, at most */
};

static inline uint32_t moat_quick_be32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, 4);
    return __builtin_bswap32(v);
}

static inline uint32_t moat_quick_be16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, 2);
    return __builtin_bswap16(v);
}

/* What a slot's view says, as the vectors want it; for a burst. */
struct moat_quick {
    __m128i head;      /* frame bytes 6-21 as they must be */
    __m128i head_care; /* which bits of them */
    __m128i own;       /* the key's own address */
    __m128i own_care;
    bool any; /* else nothing is quick */
};

static inline void moat_quick_begin(struct moat_quick *q, const struct moat_view *v,
                                    const enum moat_dir dir)
{
    const char m = dir == MOAT_FROM_VM ? -1 : 0;
    uint8_t head[16] = {[6] = 0x08, [8] = 0x45};
    uint32_t addr;

    memcpy(head, v->mac, sizeof v->mac);
    memcpy(&addr, v->addrs[0].addr, 4);
    /* Ethertype, version and header length; MF and offset. */
    q->head_care = _mm_setr_epi8(m, m, m, m, m, m, -1, -1, -1, 0, 0, 0, 0, 0, 0x3f, -1);
    q->head = _mm_loadu_si128((const __m128i *)(const void *)head);
    q->own = _mm_setr_epi32((int)addr, 0, 0, 0);
    q->own_care = _mm_setr_epi32(m, 0, 0, 0);
    /* It is the VM's own MAC and first address that it says, and the slot looks at both. */
    q->any = dir == MOAT_TO_VM ||
             (v->addrs[0].family == MOAT_FAM_IP4 && v->settings.spoof != MOAT_SPOOF_OFF);
}

/* Frame bytes 23-38 in the order of moat_key from `local` on; the family is not in the frame. */
static inline __attribute__((always_inline)) __m128i moat_quick_order(__m128i tail,
                                                                      const enum moat_dir dir)
{
    const __m128i from = _mm_setr_epi8(3, 4, 5, 6, 7, 8, 9, 10, 12, 11, 14, 13, -1, -1, 0, -1);
    const __m128i to = _mm_setr_epi8(7, 8, 9, 10, 3, 4, 5, 6, 14, 13, 12, 11, -1, -1, 0, -1);
    const __m128i family = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, MOAT_FAM_IP4);

    return _mm_or_si128(_mm_shuffle_epi8(tail, dir == MOAT_FROM_VM ? from : to), family);
}

/* Not zero: an address from 224.0.0.0 on, a port 0; from the VM to port 67 or 68, which is the
 * guard's if it is DHCP. */
static inline __attribute__((always_inline)) __m128i moat_quick_odd(__m128i key,
                                                                    const enum moat_dir dir)
{
    const __m128i most =
        _mm_setr_epi8((char)223, -1, -1, -1, (char)223, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m128i least = _mm_setr_epi16(0, 0, 0, 0, 1, 1, 0, 0);
    const __m128i dhcp = _mm_setr_epi16(0, 0, 0, 0, 0, 67, 0, 0);
    const __m128i two = _mm_setr_epi16(0, 0, 0, 0, 0, 2, 0, 0);
    __m128i odd = _mm_or_si128(_mm_subs_epu8(key, most), _mm_subs_epu16(least, key));

    if (dir == MOAT_FROM_VM)
        odd = _mm_or_si128(odd, _mm_subs_epu16(two, _mm_sub_epi16(key, dhcp)));
    return odd;
}

static inline __attribute__((always_inline)) bool moat_quick_udp(const uint8_t *d, uint32_t total)
{
    uint32_t len = moat_quick_be16(d + MOAT_Q_L4 + 4);

    return len >= 8 && len + 20 <= total;
}

static inline __attribute__((always_inline)) uint32_t moat_quick_tcp_header(const uint8_t *d)
{
    return (d[MOAT_Q_L4 + 12] & 0xf0u) >> 2;
}

static inline __attribute__((always_inline)) bool moat_quick_tcp(const uint8_t *d, uint32_t len,
                                                                 uint32_t total, const bool syn)
{
    const uint8_t kind = MOAT_TCP_ACK | MOAT_TCP_SYN | MOAT_TCP_FIN | MOAT_TCP_RST;
    uint32_t header = moat_quick_tcp_header(d), is = d[MOAT_Q_L4 + 13] & kind;

    return (is == MOAT_TCP_ACK || (syn && is == MOAT_TCP_SYN)) && header >= 20 &&
           header + 20 <= total && MOAT_Q_L4 + header <= len;
}

#define MOAT_Q_MOST (14 + 65535 + MOAT_Q_PADDING)
_Static_assert(MOAT_Q_MOST < 1 << MOAT_TALLY_BYTE_BITS, "one packet is one carry at most");

/* True: *key is the packet's key from `local` on, and everything is right with it; nothing of p
 * is set.  False: nothing is known.  syn: SYNs, too. */
static inline __attribute__((always_inline)) bool moat_quick(const struct moat_quick *q,
                                                             const struct moat_pkt *p,
                                                             const enum moat_dir dir,
                                                             const bool syn, __m128i *key)
{
    const uint8_t *d = p->data;
    __m128i odd, k;
    uint32_t total;

    if (__builtin_expect(p->len < MOAT_Q_BYTES, 0))
        return false;
    odd = _mm_loadu_si128((const __m128i *)(const void *)(d + MOAT_Q_HEAD));
    odd = _mm_and_si128(_mm_xor_si128(odd, q->head), q->head_care);
    k = _mm_loadu_si128((const __m128i *)(const void *)(d + MOAT_Q_TAIL));
    k = moat_quick_order(k, dir);
    odd = _mm_or_si128(odd, moat_quick_odd(k, dir));
    if (dir == MOAT_FROM_VM)
        odd = _mm_or_si128(odd, _mm_and_si128(_mm_xor_si128(k, q->own), q->own_care));
    total = moat_quick_be16(d + MOAT_Q_TOTAL);
    if (__builtin_expect(
            !_mm_testz_si128(odd, odd) || d[0] & 1 || p->total - (14 + total) > MOAT_Q_PADDING, 0))
        return false;
    *key = k;
    if (d[MOAT_Q_PROTO] == 17)
        return moat_quick_udp(d, total);
    return __builtin_expect(d[MOAT_Q_PROTO] == 6, 1) && moat_quick_tcp(d, p->len, total, syn);
}

/* As moat_session_hash() of the whole key. */
static inline __attribute__((always_inline)) uint64_t
moat_quick_hash(const struct moat_hash_seed *seed, __m128i key, uint8_t proto)
{
    const __m128i halves = _mm_setr_epi8(8, 9, 0, 1, 2, 3, -1, -1, 10, 11, 4, 5, 6, 7, -1, -1);
    __m128i v = _mm_shuffle_epi8(key, halves);

    return moat_session_hash_halves(seed, (uint64_t)_mm_cvtsi128_si64(v),
                                    (uint64_t)_mm_extract_epi64(v, 1),
                                    (uint64_t)proto << 48 | (uint64_t)MOAT_FAM_IP4 << 40);
}

/* Of a packet that moat_quick() has admitted: what a session's state wants to know, and the guard
 * of frames to the VM.  Of a SYN all but its window scale: moat_quick_options(). */
static inline void moat_quick_fill(struct moat_pkt *p)
{
    const uint8_t *d = p->data, *t = d + MOAT_Q_L4;

    p->src = d + MOAT_Q_SRC;
    p->dst = d + MOAT_Q_DST;
    p->cast = MOAT_UNICAST;
    p->kind = MOAT_PKT_UDP;
    if (d[MOAT_Q_PROTO] == 17)
        return;
    p->kind = MOAT_PKT_TCP;
    p->tcp.seq = moat_quick_be32(t + 4);
    p->tcp.ack = moat_quick_be32(t + 8);
    p->tcp.flags = t[13] & 0x3f;
    p->tcp.win = (uint16_t)moat_quick_be16(t + 14);
    p->tcp.len = moat_quick_be16(d + MOAT_Q_TOTAL) - 20 - moat_quick_tcp_header(d);
    p->tcp.wscale = 0;
}

/* p is to open a session, or meets one. */
static inline void moat_quick_options(struct moat_pkt *p)
{
    if (p->quick && p->kind == MOAT_PKT_TCP && p->tcp.flags & MOAT_TCP_SYN)
        p->tcp.wscale = moat_parse_wscale(p->data + MOAT_Q_L4);
}

#endif /* datapath/quick.h */
