/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_SESSION_H
#define MOAT_SESSION_H 1

/* The session record: one live session of one vNIC, as it is dumped, shown and
 * moved between hosts.  Published and versioned; written field by field in
 * network byte order; durations, never absolute times.
 *
 *   offset size
 *      0    1  version (2)
 *      1    1  length of the record in bytes: 96 (IPv4) or 120 (IPv6)
 *      2    1  family: 4 or 6
 *      3    1  IP protocol
 *      4    1  direction of the first packet: enum moat_dir
 *      5    1  flags: MOAT_SES_F_*
 *      6    2  VLAN id, 0: untagged
 *      8    2  local port (ICMP: identifier)
 *     10    2  remote port (ICMP: identifier)
 *     12    4  rule that admitted it, 0: the default
 *     16    8  generation of the policy that admitted it
 *     24    4  age of the session, seconds
 *     28    4  idle time, seconds
 *     32   16  packets from the VM, packets to the VM (64 bits each)
 *     48   16  bytes from the VM, bytes to the VM (64 bits each)
 *     64   12  TCP side of the VM:     seq_lo:32 seq_hi:32 max_win:16 wscale:8 state:8
 *     76   12  TCP side of the remote: the same
 *              (not TCP: zero, but for `state`, and the VM's `wscale`: MOAT_SES_ERROR_CAME)
 *     88    4  local address (16 bytes for IPv6)
 *     92    4  remote address (16 bytes for IPv6; it then starts at 104)
 *
 * On the control socket and between hosts a record is framed: the XXH32 of the
 * record (seed MOAT_SES_MAGIC, 4 bytes, network byte order), then the record. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "moat/flow.h"

#define MOAT_SES_VERSION 2
#define MOAT_SES_MAGIC 0x4d534553u /* "MSES" */
#define MOAT_SES_LEN4 96
#define MOAT_SES_LEN6 120
#define MOAT_SES_FRAME_MAX (4 + MOAT_SES_LEN6)

#define MOAT_SES_F_REPLIED 0x01   /* packets were seen both ways */
#define MOAT_SES_F_LOOSE 0x02     /* picked up mid-stream: windows are learnt */
#define MOAT_SES_F_IMPORTED 0x04  /* came with a migration: lenient until one packet each way */
#define MOAT_SES_F_FAIL_OPEN 0x08 /* admitted by a fail mode, not by a rule */
#define MOAT_SES_F_STALE 0x80     /* records only: admitted by an older ruleset than its slot has;
                                   * to be judged again, even if the policy is the same there */

#define MOAT_SES_ERROR_CAME 0x01 /* an ICMP error about it came back: a query ends sooner */

struct moat_ses_side {
    uint32_t seq_lo; /* highest sequence number sent, plus one */
    uint32_t seq_hi; /* highest sequence number that the peer allows */
    uint16_t max_win; /* largest window advertised, unscaled */
    uint8_t wscale;   /* bits 0-3: shift; 0x80: the option was seen; 0x60: picked up mid-stream;
                       * 0x10: this end opened the session (datapath/state_tcp.c) */
    uint8_t state;    /* TCP: enum moat_tcp_state (datapath/state_tcp.h); others: see there */
};

struct moat_ses_rec {
    uint8_t family, proto, dir, flags;
    uint16_t vlan, lport, rport;
    uint32_t rule;
    uint64_t generation;
    uint32_t age_s, idle_s;
    uint64_t packets[2], bytes[2]; /* by enum moat_dir */
    struct moat_ses_side side[2];  /* by enum moat_dir: who sends */
    uint8_t local[16], remote[16]; /* IPv4 in the first 4 bytes */
};

static inline uint8_t *moat_put_be(uint8_t *p, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * (n - 1 - i)));
    return p + n;
}

static inline const uint8_t *moat_get_be(const uint8_t *p, uint64_t *v, unsigned n)
{
    *v = 0;
    for (unsigned i = 0; i < n; i++)
        *v = *v << 8 | p[i];
    return p + n;
}

static inline unsigned moat_ses_len(uint8_t family)
{
    return family == MOAT_FAM_IP6 ? MOAT_SES_LEN6 : MOAT_SES_LEN4;
}

/* Writes a record of moat_ses_len(r->family) bytes; returns its length. */
static inline unsigned moat_ses_encode(const struct moat_ses_rec *r, uint8_t out[MOAT_SES_LEN6])
{
    unsigned len = moat_ses_len(r->family), alen = r->family == MOAT_FAM_IP6 ? 16 : 4;
    uint8_t *p = out;

    p = moat_put_be(p, MOAT_SES_VERSION, 1);
    p = moat_put_be(p, len, 1);
    p = moat_put_be(p, r->family, 1);
    p = moat_put_be(p, r->proto, 1);
    p = moat_put_be(p, r->dir, 1);
    p = moat_put_be(p, r->flags, 1);
    p = moat_put_be(p, r->vlan, 2);
    p = moat_put_be(p, r->lport, 2);
    p = moat_put_be(p, r->rport, 2);
    p = moat_put_be(p, r->rule, 4);
    p = moat_put_be(p, r->generation, 8);
    p = moat_put_be(p, r->age_s, 4);
    p = moat_put_be(p, r->idle_s, 4);
    for (int d = 0; d < 2; d++)
        p = moat_put_be(p, r->packets[d], 8);
    for (int d = 0; d < 2; d++)
        p = moat_put_be(p, r->bytes[d], 8);
    for (int d = 0; d < 2; d++) {
        p = moat_put_be(p, r->side[d].seq_lo, 4);
        p = moat_put_be(p, r->side[d].seq_hi, 4);
        p = moat_put_be(p, r->side[d].max_win, 2);
        p = moat_put_be(p, r->side[d].wscale, 1);
        p = moat_put_be(p, r->side[d].state, 1);
    }
    memcpy(p, r->local, alen);
    memcpy(p + alen, r->remote, alen);
    return len;
}

/* Reads one record from n bytes.  Returns its length, or 0 if it is truncated,
 * of another version, or has a field out of range (state numbers excepted: the
 * one who imports checks them). */
static inline unsigned moat_ses_decode(const uint8_t *in, size_t n, struct moat_ses_rec *r)
{
    uint64_t v;

    if (n < MOAT_SES_LEN4 || in[0] != MOAT_SES_VERSION)
        return 0;
    if ((in[2] != MOAT_FAM_IP4 && in[2] != MOAT_FAM_IP6) || in[1] != moat_ses_len(in[2]) ||
        n < in[1] || in[4] > 1)
        return 0;
    memset(r, 0, sizeof *r);
    unsigned alen = in[2] == MOAT_FAM_IP6 ? 16 : 4;
    const uint8_t *p = in + 6;
    r->family = in[2];
    r->proto = in[3];
    r->dir = in[4];
    r->flags = in[5];
#define GET(FIELD, N) p = moat_get_be(p, &v, N), FIELD = (__typeof__(FIELD))v
    GET(r->vlan, 2);
    GET(r->lport, 2);
    GET(r->rport, 2);
    GET(r->rule, 4);
    GET(r->generation, 8);
    GET(r->age_s, 4);
    GET(r->idle_s, 4);
    for (int d = 0; d < 2; d++)
        GET(r->packets[d], 8);
    for (int d = 0; d < 2; d++)
        GET(r->bytes[d], 8);
    for (int d = 0; d < 2; d++) {
        GET(r->side[d].seq_lo, 4);
        GET(r->side[d].seq_hi, 4);
        GET(r->side[d].max_win, 2);
        GET(r->side[d].wscale, 1);
        GET(r->side[d].state, 1);
    }
#undef GET
    memcpy(r->local, p, alen);
    memcpy(r->remote, p + alen, alen);
    if (r->vlan > 4094)
        return 0;
    return in[1];
}

#endif /* moat/session.h */
