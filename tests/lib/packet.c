/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/lib/packet.h"

#include <check.h>
#include <string.h>

static void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static void put32(uint8_t *p, uint32_t v)
{
    put16(p, v >> 16);
    put16(p + 2, v);
}

static uint8_t *add(struct frame *f, uint32_t n)
{
    uint8_t *p = f->data + f->len;

    ck_assert_uint_le(f->len + n, sizeof f->data);
    memset(p, 0, n);
    f->len += n;
    return p;
}

void frame_bytes(struct frame *f, const void *bytes, uint32_t n)
{
    memcpy(add(f, n), bytes, n);
}

void frame_data(struct frame *f, uint32_t n)
{
    memset(add(f, n), 'x', n);
}

void frame_eth(struct frame *f, const uint8_t dst[6], const uint8_t src[6])
{
    memset(f, 0, sizeof *f);
    frame_bytes(f, dst, 6);
    frame_bytes(f, src, 6);
    f->type_off = f->len;
    add(f, 2);
}

void frame_vlan(struct frame *f, uint16_t tpid, uint16_t tci)
{
    put16(f->data + f->type_off, tpid);
    put16(add(f, 2), tci);
    f->type_off = f->len;
    add(f, 2);
}

void frame_arp(struct frame *f, uint16_t op, const uint8_t sha[6], const uint8_t spa[4],
               const uint8_t tha[6], const uint8_t tpa[4])
{
    static const uint8_t head[6] = {0, 1, 8, 0, 6, 4};

    put16(f->data + f->type_off, 0x0806);
    frame_bytes(f, head, sizeof head);
    put16(add(f, 2), op);
    frame_bytes(f, sha, 6);
    frame_bytes(f, spa, 4);
    frame_bytes(f, tha, 6);
    frame_bytes(f, tpa, 4);
}

void frame_rarp(struct frame *f, const uint8_t mac[6])
{
    static const uint8_t none[4];

    frame_arp(f, 3, mac, none, mac, none);
    put16(f->data + f->type_off, 0x8035);
    add(f, 60 - f->len);
}

void frame_ip4(struct frame *f, const uint8_t src[4], const uint8_t dst[4], uint8_t proto)
{
    uint8_t *p;

    put16(f->data + f->type_off, 0x0800);
    f->ip_off = f->len;
    f->family = 4;
    f->proto = proto;
    p = add(f, 20);
    p[0] = 0x45;
    p[8] = 64;
    p[9] = proto;
    memcpy(p + 12, src, 4);
    memcpy(p + 16, dst, 4);
    f->l4_off = f->len;
}

void frame_ip6(struct frame *f, const uint8_t src[16], const uint8_t dst[16], uint8_t next)
{
    uint8_t *p;

    put16(f->data + f->type_off, 0x86dd);
    f->ip_off = f->len;
    f->family = 6;
    f->proto = next;
    f->ip6_next_off = f->len + 6;
    p = add(f, 40);
    p[0] = 0x60;
    p[6] = next;
    p[7] = 64;
    memcpy(p + 8, src, 16);
    memcpy(p + 24, dst, 16);
    f->l4_off = f->len;
}

void frame_ext6(struct frame *f, uint8_t type, uint8_t more)
{
    uint8_t *p = add(f, 8 + 8u * more);

    f->data[f->ip6_next_off] = type;
    f->ip6_next_off = (uint32_t)(p - f->data);
    p[0] = f->proto;
    p[1] = more;
    f->l4_off = f->len;
}

void frame_frag6(struct frame *f, uint16_t offset, int more, uint32_t id)
{
    uint8_t *p = f->data + f->len;

    frame_ext6(f, 44, 0);
    p[1] = 0;
    put16(p + 2, (uint32_t)offset | (more ? 1 : 0));
    put32(p + 4, id);
}

void frame_tcp(struct frame *f, uint16_t sport, uint16_t dport, uint32_t seq, uint32_t ack,
               uint8_t flags, uint16_t win)
{
    uint8_t *p = add(f, 20);

    put16(p, sport);
    put16(p + 2, dport);
    put32(p + 4, seq);
    put32(p + 8, ack);
    p[12] = 5 << 4;
    p[13] = flags;
    put16(p + 14, win);
}

void frame_wscale(struct frame *f, uint8_t shift)
{
    const uint8_t option[4] = {1, 3, 3, shift};

    frame_bytes(f, option, sizeof option);
    f->data[f->l4_off + 12] += 1 << 4;
}

void frame_udp(struct frame *f, uint16_t sport, uint16_t dport)
{
    uint8_t *p = add(f, 8);

    put16(p, sport);
    put16(p + 2, dport);
}

void frame_icmp(struct frame *f, uint8_t type, uint8_t code, uint16_t id)
{
    uint8_t *p = add(f, 8);

    p[0] = type;
    p[1] = code;
    put16(p + 4, id);
    put16(p + 6, 1);
}

void frame_end(struct frame *f)
{
    if (f->family == 4)
        put16(f->data + f->ip_off + 2, f->len - f->ip_off);
    else if (f->family == 6)
        put16(f->data + f->ip_off + 4, f->len - f->ip_off - 40);
    if (f->proto == 17 && f->l4_off + 8 <= f->len)
        put16(f->data + f->l4_off + 4, f->len - f->l4_off);
    if (f->len < 60)
        add(f, 60 - f->len);
}
