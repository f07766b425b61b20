/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/lib/traffic.h"

#include "datapath/parse.h"

enum { UNUSED, TCP, UDP, ECHO, OTHER, PIECES };
enum { CLOSED, CALLED, OPEN }; /* stages of TCP */

static const uint8_t outside_mac[6] = {2, 0, 0, 0, 0, 0xee};
static const uint8_t outside_ip4[4] = {192, 0, 2, 9};
static const uint8_t outside_ip6[16] = {0x20, 1, 0xd, 0xb8, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9};

static const uint8_t *mac_of(unsigned end)
{
    return end < RIG_SLOTS ? rig_mac[end] : outside_mac;
}

static const uint8_t *ip4_of(unsigned end)
{
    return end < RIG_SLOTS ? rig_ip4[end] : outside_ip4;
}

static const uint8_t *ip6_of(unsigned end)
{
    return end < RIG_SLOTS ? rig_ip6[end] : outside_ip6;
}

static uint32_t below(struct traffic *t, uint32_t n)
{
    return choice_below(t->choice, n);
}

static bool one_in(struct traffic *t, uint32_t n)
{
    return choice_one_in(t->choice, n);
}

static void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

void traffic_init(struct traffic *t, struct choice *choice, unsigned n_convs)
{
    memset(t, 0, sizeof *t);
    t->choice = choice;
    t->n_convs = n_convs < TRAFFIC_CONVS_MAX ? n_convs : TRAFFIC_CONVS_MAX;
}

/* --- conversations --- */

static void start(struct traffic *t, struct traffic_conv *c)
{
    static const uint8_t kinds[16] = {TCP,  TCP,   TCP,    TCP, TCP, TCP, TCP, UDP,
                                      ECHO, OTHER, PIECES, TCP, TCP, TCP, UDP, UDP};
    static const uint16_t ports[8] = {80, 443, 53, 80, 8080, 80, 22, 53};
    unsigned ends = below(t, TRAFFIC_ENDS * (TRAFFIC_ENDS - 1));

    memset(c, 0, sizeof *c);
    c->kind = kinds[below(t, 16)];
    c->family = one_in(t, 3) ? 6 : 4;
    c->end[0] = (uint8_t)(ends % TRAFFIC_ENDS);
    c->end[1] = (uint8_t)((c->end[0] + 1 + ends / TRAFFIC_ENDS) % TRAFFIC_ENDS);
    c->vlan = one_in(t, 32) ? 5 : 0;
    /* Few source ports: tuples are used again. */
    c->port[0] = (uint16_t)(1024 + (t->serial++ & 0x3ff));
    c->port[1] = ports[below(t, 8)];
    if (c->kind == PIECES)
        c->port[1] = 53;
    c->proto = (uint8_t)(one_in(t, 2) ? 132 : 47);
    c->id = t->serial;
    c->quote_dir = 2;
}

static void begin(const struct traffic_conv *c, unsigned dir, uint8_t proto, struct frame *f)
{
    unsigned from = c->end[dir], to = c->end[!dir];

    frame_eth(f, mac_of(to), mac_of(from));
    if (c->vlan)
        frame_vlan(f, 0x8100, c->vlan);
    if (c->family == 4)
        frame_ip4(f, ip4_of(from), ip4_of(to), proto);
    else
        frame_ip6(f, ip6_of(from), ip6_of(to), proto);
}

/* --- TCP --- */

struct segment {
    unsigned dir;
    uint8_t flags;
    uint32_t seq, ack, len;
    uint16_t win;
    int wscale; /* -1: no option */
};

/* What an honest end sends next. */
static struct segment honest(const struct traffic_conv *c, unsigned dir)
{
    return (struct segment){.dir = dir,
                            .flags = MOAT_TCP_ACK,
                            .seq = c->next[dir],
                            .ack = c->next[!dir],
                            .win = 8192,
                            .wscale = -1};
}

static struct segment call(struct traffic *t, struct traffic_conv *c)
{
    struct segment s = honest(c, 0);

    c->closed = 0;
    c->stage = CALLED;
    c->next[0] = s.seq = one_in(t, 2) ? choice_32(t->choice) : c->next[0] + 100000;
    c->next[1] = one_in(t, 2) ? choice_32(t->choice) : c->next[1] + 100000;
    s.flags = MOAT_TCP_SYN;
    s.ack = 0;
    s.wscale = (int)below(t, 16) - 1;
    c->next[0]++;
    return s;
}

static struct segment answer(struct traffic *t, struct traffic_conv *c)
{
    struct segment s = honest(c, 1);

    switch (below(t, 16)) {
    case 15:
        s = honest(c, 0); /* too early */
        break;
    case 14:
        s.flags = MOAT_TCP_RST | MOAT_TCP_ACK;
        s.seq = 0;
        c->stage = CLOSED;
        break;
    case 13:
        s.dir = 0; /* the SYN again */
        s.flags = MOAT_TCP_SYN;
        s.seq = c->next[0] - 1;
        s.ack = 0;
        break;
    case 12: /* both call */
        s.flags = MOAT_TCP_SYN;
        s.ack = 0;
        break;
    case 11:
        s.ack += 1 + below(t, 3); /* acknowledges what was not sent */
        s.flags |= MOAT_TCP_SYN;
        break;
    default:
        s.flags |= MOAT_TCP_SYN;
        s.wscale = (int)below(t, 16) - 1;
        c->next[1]++;
        c->stage = OPEN;
    }
    return s;
}

static uint32_t distance(struct traffic *t)
{
    static const uint32_t far[8] = {1, 100, 8192, 65535, 66001, 200000, 1u << 28, 1u << 31};
    uint32_t d = far[below(t, 8)];

    return one_in(t, 2) ? 0 - d : d;
}

/* Data, acknowledgements, and everything that may go wrong. */
static struct segment talk(struct traffic *t, struct traffic_conv *c)
{
    struct segment s = honest(c, below(t, 2));
    uint32_t *next = &c->next[s.dir];

    switch (below(t, 24)) {
    case 23:
        return call(t, c); /* the same ports again, perhaps too early */
    case 22:
        s.flags |= MOAT_TCP_RST;
        c->stage = CLOSED;
        break;
    case 21:
        s.flags = MOAT_TCP_RST;
        s.seq += distance(t);
        break;
    case 20:
        s.flags |= MOAT_TCP_SYN; /* again, or out of the blue */
        s.seq -= one_in(t, 2) ? 1 : 0;
        break;
    case 19:
        s.seq += distance(t);
        s.len = below(t, 1400);
        break;
    case 18:
        s.ack += distance(t);
        break;
    case 17:
        s.seq -= 1; /* keep-alive */
        break;
    case 16:
        s.len = 1 + below(t, 1400); /* retransmission */
        s.seq -= s.len;
        break;
    case 15:
        *next += 500; /* lost on its way to us */
        break;
    case 14:
        s.win = (uint16_t)choice_32(t->choice);
        break;
    case 13:
    case 12:
        s.flags |= MOAT_TCP_FIN;
        *next += 1;
        c->closed |= (uint8_t)(1u << s.dir);
        break;
    case 11:
        s.flags = MOAT_TCP_SYN;
        break;
    case 10:
        break;
    default:
        s.len = below(t, 1400);
        s.flags |= MOAT_TCP_PSH;
        *next += s.len;
    }
    if (c->closed == 3 && one_in(t, 4))
        c->stage = CLOSED;
    return s;
}

static unsigned make_tcp(struct traffic *t, struct traffic_conv *c, struct traffic_pkt *out)
{
    struct frame *f = &out->f;
    struct segment s;
    uint32_t more = 0;

    if (c->stage == CLOSED && !one_in(t, 8))
        s = call(t, c);
    else if (c->stage == CALLED)
        s = answer(t, c);
    else
        s = talk(t, c);
    begin(c, s.dir, 6, f);
    frame_tcp(f, c->port[s.dir], c->port[!s.dir], s.seq, s.ack, s.flags, s.win);
    if (s.wscale >= 0 && s.flags & MOAT_TCP_SYN)
        frame_wscale(f, (uint8_t)s.wscale);
    frame_data(f, s.len);
    frame_end(f);
    if (one_in(t, 32) && s.len) { /* a large segment, most of it elsewhere */
        more = below(t, 60000);
        put16(f->data + f->ip_off + (c->family == 4 ? 2 : 4),
              f->len - f->ip_off - (c->family == 4 ? 0 : 40) + more);
        c->next[s.dir] += more;
    }
    out->total = f->len + more;
    return s.dir;
}

static void train_tcp(struct traffic_conv *c, unsigned dir, struct traffic_pkt *out)
{
    struct segment s = honest(c, dir);

    begin(c, dir, 6, &out->f);
    frame_tcp(&out->f, c->port[dir], c->port[!dir], s.seq, s.ack, s.flags, s.win);
    frame_data(&out->f, 64);
    frame_end(&out->f);
    c->next[dir] += 64;
}

/* --- without handshake --- */

static unsigned make_udp(struct traffic *t, struct traffic_conv *c, unsigned dir,
                         struct traffic_pkt *out)
{
    begin(c, dir, 17, &out->f);
    if (c->family == 6 && one_in(t, 16))
        frame_ext6(&out->f, (uint8_t)(one_in(t, 2) ? 60 : 0), 0);
    frame_udp(&out->f, c->port[dir], c->port[!dir]);
    frame_data(&out->f, below(t, 64));
    frame_end(&out->f);
    return dir;
}

static unsigned make_echo(struct traffic *t, struct traffic_conv *c, struct traffic_pkt *out)
{
    unsigned dir = below(t, 2);

    begin(c, dir, c->family == 4 ? 1 : 58, &out->f);
    if (c->family == 4)
        frame_icmp(&out->f, dir ? 0 : 8, 0, c->port[0]);
    else
        frame_icmp(&out->f, dir ? 129 : 128, 0, c->port[0]);
    frame_data(&out->f, below(t, 64));
    frame_end(&out->f);
    return dir;
}

static unsigned make_other(struct traffic *t, struct traffic_conv *c, struct traffic_pkt *out)
{
    unsigned dir = below(t, 2);

    begin(c, dir, c->proto, &out->f);
    frame_data(&out->f, 8 + below(t, 64));
    frame_end(&out->f);
    return dir;
}

/* One piece of a datagram of about 200 bytes; now and then one that does not fit. */
static unsigned make_piece(struct traffic *t, struct traffic_conv *c, struct traffic_pkt *out)
{
    struct frame *f = &out->f;
    uint32_t at, len = 8 * (1 + below(t, 12));
    bool more;

    if (c->pauses != t->pauses) { /* nobody pauses within a datagram */
        c->pauses = t->pauses;
        c->at = 0;
        c->id += TRAFFIC_CONVS_MAX;
    }
    at = c->at;
    more = at + len < 200;
    if (one_in(t, 16)) {
        at = 8 * below(t, 32); /* overlaps, gaps, out of order */
        more = one_in(t, 2);
    } else {
        c->at = at + len;
    }
    begin(c, 0, 17, f);
    if (c->family == 6)
        frame_frag6(f, (uint16_t)at, more, c->id);
    if (!at) {
        frame_udp(f, c->port[0], c->port[1]);
        len -= 8;
    }
    frame_data(f, len);
    frame_end(f);
    if (!at)
        put16(f->data + f->l4_off + 4, 208);
    else if (f->l4_off + 6 <= f->len)
        memset(f->data + f->l4_off + 4, 'y', 2); /* frame_end() took it for UDP */
    if (c->family == 4) {
        put16(f->data + f->ip_off + 4, c->id);
        put16(f->data + f->ip_off + 6, at / 8 | (more ? 0x2000 : 0));
    }
    if (!more) {
        c->at = 0;
        c->id += TRAFFIC_CONVS_MAX;
    }
    return 0;
}

/* --- what is about another packet, or about nobody's --- */

static void make_error(struct traffic *t, struct traffic_conv *c, struct traffic_pkt *out)
{
    static const uint8_t types4[4] = {3, 11, 12, 4}, types6[4] = {1, 2, 3, 4};
    struct traffic_conv back = *c;
    struct frame *f = &out->f;
    uint32_t n = one_in(t, 4) ? below(t, c->quote_len + 1) : c->quote_len;
    unsigned dir = !c->quote_dir;

    if (one_in(t, 4))
        back.end[dir] = TRAFFIC_OUTSIDE; /* a router's */
    begin(&back, dir, c->family == 4 ? 1 : 58, f);
    frame_icmp(f, (c->family == 4 ? types4 : types6)[below(t, 4)], 0, 0);
    frame_bytes(f, c->quote, n);
    if (n && one_in(t, 8))
        f->data[f->len - 1 - below(t, n)] ^= (uint8_t)(1 + below(t, 255));
    frame_end(f);
    out->from = back.end[dir];
    out->to = c->end[!dir];
}

static const uint8_t all_nodes[16] = {0xff, 2, [15] = 1};

static void make_nd(struct traffic *t, unsigned from, unsigned to, struct frame *f)
{
    static const uint8_t types[4] = {135, 136, 133, 134};
    uint8_t option[8] = {1, 1}, type = types[below(t, 4)];

    frame_eth(f, mac_of(to), mac_of(from));
    frame_ip6(f, ip6_of(from), one_in(t, 2) ? all_nodes : ip6_of(to), 58);
    f->data[f->ip_off + 7] = 255;
    frame_icmp(f, type, 0, 0);
    if (type == 135 || type == 136)
        frame_bytes(f, ip6_of(type == 135 ? to : from), 16);
    else if (type == 134)
        frame_data(f, 8);
    option[0] = type == 136 ? 2 : 1;
    memcpy(option + 2, mac_of(from), 6);
    frame_bytes(f, option, sizeof option);
    frame_end(f);
}

static void make_dhcp(struct traffic *t, unsigned from, struct frame *f)
{
    static const uint8_t none[4], all4[4] = {255, 255, 255, 255};
    static const uint8_t all_mac[6] = {255, 255, 255, 255, 255, 255};
    bool server = one_in(t, 4);
    uint8_t bootp[240] = {1, 1, 6};

    bootp[0] = server ? 2 : 1;
    memcpy(bootp + 28, mac_of(from), 6);
    frame_eth(f, all_mac, mac_of(from));
    frame_ip4(f, server ? ip4_of(from) : none, all4, 17);
    frame_udp(f, server ? 67 : 68, server ? 68 : 67);
    frame_bytes(f, bootp, sizeof bootp);
    frame_end(f);
}

static void make_loner(struct traffic *t, struct traffic_pkt *out)
{
    unsigned ends = below(t, TRAFFIC_ENDS * (TRAFFIC_ENDS - 1));
    unsigned from = ends % TRAFFIC_ENDS, to = (from + 1 + ends / TRAFFIC_ENDS) % TRAFFIC_ENDS;
    struct frame *f = &out->f;

    switch (below(t, 8)) {
    case 7:
        frame_eth(f, mac_of(to), mac_of(from));
        put16(f->data + 12, one_in(t, 2) ? 0x88cc : 0x88b5);
        frame_data(f, 50);
        frame_end(f);
        break;
    case 6:
        if (one_in(t, 8)) { /* few: there is a limit to them */
            frame_eth(f, (const uint8_t[6]){255, 255, 255, 255, 255, 255}, mac_of(from));
            frame_rarp(f, mac_of(from));
            break;
        }
        /* fall through */
    case 5:
        make_dhcp(t, from, f);
        break;
    case 4:
    case 3:
        make_nd(t, from, to, f);
        break;
    default:
        frame_eth(f, mac_of(to), mac_of(from));
        frame_arp(f, (uint16_t)(1 + below(t, 2)), mac_of(from), ip4_of(from), mac_of(to),
                  ip4_of(one_in(t, 4) ? from : to));
        frame_end(f);
    }
    out->from = (uint8_t)from;
    out->to = (uint8_t)to;
}

/* --- all together --- */

static void remember(struct traffic_conv *c, unsigned dir, const struct frame *f)
{
    uint32_t n = f->len - f->ip_off;

    c->quote_len = n < sizeof c->quote ? n : sizeof c->quote;
    memcpy(c->quote, f->data + f->ip_off, c->quote_len);
    c->quote_dir = (uint8_t)dir;
}

static void converse(struct traffic *t, struct traffic_conv *c, struct traffic_pkt *out)
{
    unsigned dir;

    switch (c->kind) {
    case TCP:
        dir = make_tcp(t, c, out);
        break;
    case UDP:
        dir = make_udp(t, c, below(t, 2), out);
        break;
    case ECHO:
        dir = make_echo(t, c, out);
        break;
    case OTHER:
        dir = make_other(t, c, out);
        break;
    default:
        dir = make_piece(t, c, out);
    }
    out->from = c->end[dir];
    out->to = c->end[!dir];
    remember(c, dir, &out->f);
    if ((c->kind == TCP && c->stage != CLOSED) || c->kind == UDP)
        if (one_in(t, 8)) {
            t->train = 1 + below(t, 40);
            t->train_conv = (unsigned)(c - t->convs);
            t->train_dir = dir;
        }
    if (one_in(t, 64))
        c->kind = UNUSED;
}

static void go_on_with_train(struct traffic *t, struct traffic_pkt *out)
{
    struct traffic_conv *c = &t->convs[t->train_conv];

    t->train--;
    if (c->kind == TCP)
        train_tcp(c, t->train_dir, out);
    else
        make_udp(t, c, t->train_dir, out);
    out->from = c->end[t->train_dir];
    out->to = c->end[!t->train_dir];
}

/* A few bytes, anywhere: mostly in the headers. */
static void spoil(struct traffic *t, struct frame *f)
{
    for (unsigned n = 1 + below(t, 3); n; n--)
        f->data[below(t, f->len < 90 ? f->len : 90)] = (uint8_t)below(t, 256);
}

void traffic_next(struct traffic *t, struct traffic_pkt *out)
{
    static const uint32_t waits[8] = {1, 40, 300, 1000, 11000, 31000, 61000, 130000};
    struct traffic_conv *c;

    out->total = out->wait_ms = 0;
    if (t->train && t->convs[t->train_conv].kind) {
        go_on_with_train(t, out);
    } else {
        t->train = 0;
        if (one_in(t, 16 + 2 * t->n_convs)) /* few conversations grow old in between */
            out->wait_ms = waits[below(t, 8)];
        t->pauses += out->wait_ms > 1000;
        c = &t->convs[below(t, t->n_convs)];
        if (c->kind == UNUSED)
            start(t, c);
        if (one_in(t, 16))
            make_loner(t, out);
        else if (c->quote_dir < 2 && one_in(t, 16))
            make_error(t, c, out);
        else
            converse(t, c, out);
        if (one_in(t, 12))
            spoil(t, &out->f);
    }
    if (!out->total)
        out->total = out->f.len;
    out->len = out->f.len;
    if (one_in(t, 32)) /* the rest is in another segment */
        out->len = 14 + below(t, out->f.len - 13);
}
