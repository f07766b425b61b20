/* SPDX-License-Identifier: Apache-2.0 */

/* Frames with right checksums: the trackers to compare with look at them. */

#include "talk.h"

#include <string.h>

#include "datapath/parse.h"

enum { P_ICMP = 1, P_TCP = 6, P_UDP = 17, P_ICMP6 = 58 };

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

static uint32_t sum16(uint32_t sum, const uint8_t *p, uint32_t n)
{
    for (; n > 1; n -= 2, p += 2)
        sum += (uint32_t)p[0] << 8 | p[1];
    return n ? sum + ((uint32_t)p[0] << 8) : sum;
}

static uint32_t fold(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return ~(sum + (sum >> 16)) & 0xffff;
}

/* An IP packet under construction. */
struct ip {
    uint8_t *at;
    uint8_t family, proto;
    uint32_t header;
};

/* VMs are 10.0.0.N and 2001:db8::N, all else is 10.0.1.N and 2001:db8:1::N. */
static void address(const struct talk *t, unsigned who, bool router, uint8_t *out)
{
    bool vm = is_vm(t, who) && !router;
    uint8_t last = vm ? (uint8_t)(t->shape + 1) : router ? 250 : t->remote;

    if (t->family == 4) {
        memcpy(out, (uint8_t[]){10, 0, !vm, last}, 4);
    } else {
        static const uint8_t prefix[16] = {0x20, 1, 0xd, 0xb8};

        memcpy(out, prefix, 16);
        out[5] = !vm;
        out[15] = last;
    }
}

static struct ip begin(const struct talk *t, uint8_t *at, uint8_t proto)
{
    struct ip ip = {at, t->family, proto, t->family == 4 ? 20 : 40};

    memset(at, 0, ip.header);
    return ip;
}

static void addresses(struct ip *ip, const struct talk *t, unsigned from, bool router)
{
    uint8_t *p = ip->at + (ip->family == 4 ? 12 : 8), n = ip->family == 4 ? 4 : 16;

    address(t, from, router, p);
    address(t, !from, false, p + n);
}

/* Sum over the pseudo header. */
static uint32_t pseudo(const struct ip *ip, uint32_t len)
{
    return ip->family == 4 ? sum16(ip->proto + len, ip->at + 12, 8)
                           : sum16(ip->proto + len, ip->at + 8, 32);
}

static void finish(struct ip *ip, uint32_t l4_len)
{
    uint8_t *p = ip->at;

    if (ip->family == 4) {
        p[0] = 0x45;
        put16(p + 2, 20 + l4_len);
        p[8] = 64;
        p[9] = ip->proto;
        put16(p + 10, fold(sum16(0, p, 20)));
    } else {
        p[0] = 0x60;
        put16(p + 4, l4_len);
        p[6] = ip->proto;
        p[7] = 64;
    }
}

void wire_mark(uint8_t *frame, uint32_t mark)
{
    uint8_t *ip = frame + 14;

    if (ip[0] >> 4 == 4) {
        put16(ip + 4, mark);
        put16(ip + 10, 0);
        put16(ip + 10, fold(sum16(0, ip, 20)));
    } else {
        ip[1] = (uint8_t)(mark >> 16 & 15);
        put16(ip + 2, mark);
    }
}

uint32_t wire_marked(const uint8_t *ip)
{
    return ip[0] >> 4 == 4 ? (uint32_t)ip[4] << 8 | ip[5]
                           : (uint32_t)(ip[1] & 15) << 16 | (uint32_t)ip[2] << 8 | ip[3];
}

/* --- behind the IP header; each returns the length of header and payload --- */

static uint32_t tcp(const struct talk *t, const struct packet *p, struct ip *ip)
{
    uint8_t *l4 = ip->at + ip->header, *o = l4 + 20;
    uint32_t header;

    memset(l4, 0, 60);
    put16(l4, t->port[p->from]);
    put16(l4 + 2, t->port[!p->from]);
    put32(l4 + 4, p->seq);
    put32(l4 + 8, p->ack);
    l4[13] = p->flags;
    put16(l4 + 14, p->win);
    if (p->flags & MOAT_TCP_SYN) {
        memcpy(o, (uint8_t[]){2, 4, 5, 0xb4}, 4);
        o += 4;
        if (p->wscale) {
            memcpy(o, (uint8_t[]){1, 3, 3, p->wscale & 15}, 4);
            o += 4;
        }
        if (p->sack_ok) {
            memcpy(o, (uint8_t[]){1, 1, 4, 2}, 4);
            o += 4;
        }
    }
    if (p->stamps) {
        memcpy(o, (uint8_t[]){1, 1, 8, 10}, 4);
        put32(o + 4, t->number);
        o += 12;
    }
    if (p->n_sack) {
        memcpy(o, (uint8_t[]){1, 1, 5, (uint8_t)(2 + 8 * p->n_sack)}, 4);
        o += 4;
        for (unsigned i = 0; i < p->n_sack; i++, o += 8) {
            put32(o, p->sack[i][0]);
            put32(o + 4, p->sack[i][1]);
        }
    }
    header = (uint32_t)(o - l4);
    l4[12] = (uint8_t)(header / 4 << 4);
    memset(o, 0, p->len); /* adds nothing to the sum */
    put16(l4 + 16, fold(sum16(pseudo(ip, header + p->len), l4, header)));
    return header + p->len;
}

static uint32_t udp(const struct talk *t, const struct packet *p, struct ip *ip)
{
    uint8_t *l4 = ip->at + ip->header;
    uint32_t sum, len = 8u + p->len;

    memset(l4, 0, len);
    put16(l4, t->port[p->from]);
    put16(l4 + 2, t->port[!p->from]);
    put16(l4 + 4, len);
    sum = fold(sum16(pseudo(ip, len), l4, 8));
    put16(l4 + 6, sum ? sum : 0xffff);
    return len;
}

static void icmp_sum(const struct ip *ip, uint32_t len)
{
    uint8_t *l4 = ip->at + ip->header;

    put16(l4 + 2, 0);
    put16(l4 + 2, fold(sum16(ip->family == 4 ? 0 : pseudo(ip, len), l4, len)));
}

static uint32_t icmp(const struct packet *p, struct ip *ip)
{
    uint8_t *l4 = ip->at + ip->header;
    uint32_t len = 8u + p->len;

    memset(l4, 0, len);
    l4[0] = p->type;
    l4[1] = p->code;
    put16(l4 + 4, p->id);
    icmp_sum(ip, len);
    return len;
}

/* A packet as an error quotes it, with all that is wrong with it.  Returns its length. */
static uint32_t quote(const struct talk *t, const struct packet *p, uint8_t *out)
{
    static const struct packet never = {.kind = K_OTHER, .len = 40};
    const struct packet *q = p->quotes >= 0 ? &t->p[p->quotes] : &never;
    uint8_t whole[2048];
    uint32_t header = t->family == 4 ? 20 : 40, n;

    if (p->quotes >= 0) {
        n = q->size - 14;
        memcpy(whole, t->bytes + q->at + 14, n < sizeof whole ? n : sizeof whole);
    } else {
        struct ip ip = begin(t, whole, 254);

        addresses(&ip, t, !p->from, false);
        n = header + q->len;
        memset(whole + header, 0, q->len);
        finish(&ip, q->len);
    }
    if (p->wrong & Q_PORTS)
        whole[header + (q->kind == K_ICMP ? 4 : 0)] ^= 0x55;
    if (p->wrong & Q_SEQ)
        put32(whole + header + 4, q->seq + 0x40000000u);
    if (p->wrong & Q_LENGTH)
        put16(whole + (t->family == 4 ? 2 : 4), 60000);
    if (p->wrong & Q_SOURCE)
        whole[t->family == 4 ? 15 : 23] ^= 0x40;
    if (p->wrong & Q_TURNED) {
        uint8_t a[16], *at = whole + (t->family == 4 ? 12 : 8), size = t->family == 4 ? 4 : 16;

        memcpy(a, at, size);
        memcpy(at, at + size, size);
        memcpy(at + size, a, size);
        if (q->kind == K_TCP || q->kind == K_UDP) {
            memcpy(a, whole + header, 2);
            memcpy(whole + header, whole + header + 2, 2);
            memcpy(whole + header + 2, a, 2);
        }
    }
    if (p->wrong & Q_ERROR) {
        whole[t->family == 4 ? 9 : 6] = t->family == 4 ? P_ICMP : P_ICMP6;
        whole[header] = t->family == 4 ? 3 : 1;
        whole[header + 1] = 1;
    }
    if (p->wrong & Q_FRAGMENT && t->family == 4)
        put16(whole + 6, 100);
    if (t->family == 4) {
        put16(whole + 10, 0);
        put16(whole + 10, fold(sum16(0, whole, 20)));
    }
    /* IPv4 quotes 8 bytes of what follows the header at least (RFC 792), IPv6 all that
     * fits (RFC 4443). */
    if (n > header + p->len)
        n = header + p->len;
    if (p->wrong & Q_SHORT)
        n = p->len;
    memcpy(out, whole, n);
    return n;
}

static uint32_t error(const struct talk *t, const struct packet *p, struct ip *ip)
{
    uint8_t *l4 = ip->at + ip->header;
    uint32_t len;

    memset(l4, 0, 8);
    l4[0] = p->type;
    l4[1] = p->code;
    put16(l4 + 6, t->family == 4 && p->type == 3   ? 1400
                  : t->family == 6 && p->type == 2 ? 1400
                                                   : 0);
    len = 8 + quote(t, p, l4 + 8);
    icmp_sum(ip, len);
    return len;
}

static uint32_t other(const struct packet *p, struct ip *ip)
{
    memset(ip->at + ip->header, 0, p->len);
    return p->len;
}

bool wire_make(struct talk *t, unsigned i)
{
    static const uint8_t no_mac[6] = {2, 0, 0, 0, 1, 1};
    struct packet *p = &t->p[i];
    uint8_t *frame = t->bytes + t->used, vm_mac[6] = {2, 0, 0, 0, 0, (uint8_t)(t->shape + 1)};
    uint8_t proto = t->proto;
    struct ip ip;
    uint32_t len = 0;

    if (t->used + 14 + 40 + 60 + 8 + 1600 + p->len > TALK_BYTES)
        return false;
    if (p->kind == K_ICMP || p->kind == K_ERROR)
        proto = t->family == 4 ? P_ICMP : P_ICMP6;
    memcpy(frame, is_vm(t, p->from) ? no_mac : vm_mac, 6);
    memcpy(frame + 6, is_vm(t, p->from) ? vm_mac : no_mac, 6);
    put16(frame + 12, t->family == 4 ? 0x0800 : 0x86dd);
    ip = begin(t, frame + 14, proto);
    addresses(&ip, t, p->from, p->router);
    switch ((enum kind)p->kind) {
    case K_TCP:
        len = tcp(t, p, &ip);
        break;
    case K_UDP:
        len = udp(t, p, &ip);
        break;
    case K_ICMP:
        len = icmp(p, &ip);
        break;
    case K_ERROR:
        len = error(t, p, &ip);
        break;
    case K_OTHER:
        len = other(p, &ip);
        break;
    }
    finish(&ip, len);
    p->at = t->used;
    p->size = 14 + ip.header + len;
    t->used += (p->size + 63) & ~63u;
    return true;
}
