/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/lib/letters.h"

#include <string.h>

#include "datapath/parse.h"

const uint8_t letters_mac_a[6] = {2, 0, 0, 0, 0, 1}, letters_mac_b[6] = {2, 0, 0, 0, 0, 2};
const uint8_t letters_a4[4] = {10, 0, 0, 1}, letters_b4[4] = {10, 0, 0, 2};
const uint8_t letters_a6[16] = {0x20, 1, 0xd, 0xb8, [15] = 1},
              letters_b6[16] = {0x20, 1, 0xd, 0xb8, [15] = 2};

static uint8_t proto_of(const char *s)
{
    bool ip6 = strchr(s, '6');

    return strpbrk(s, "tT") ? 6 : strchr(s, 'u') ? 17 : !strchr(s, 'i') ? 47 : ip6 ? 58 : 1;
}

static void build_ip(struct frame *f, const char *s, bool back)
{
    if (*s == '4')
        frame_ip4(f, back ? letters_b4 : letters_a4, back ? letters_a4 : letters_b4, proto_of(s));
    else
        frame_ip6(f, back ? letters_b6 : letters_a6, back ? letters_a6 : letters_b6, proto_of(s));
}

static void build_ext(struct frame *f, char c)
{
    uint32_t off = f->len;

    switch (c) {
    case 'h':
    case 'd':
        frame_ext6(f, c == 'h' ? 0 : 60, 0);
        break;
    case 'R':
        frame_ext6(f, 43, 0);
        f->data[off + 2] = 2;
        break;
    case 'A': /* counts in 4 bytes: 16 of them */
        frame_ext6(f, 51, 1);
        f->data[off + 1] = 2;
        break;
    case 'm':
    case 'H':
    case 'S':
        frame_ext6(f, c == 'm' ? 135 : c == 'H' ? 139 : 140, 1);
        break;
    default:
        frame_frag6(f, c == 'L' ? 80 : 0, c == 'F', 1);
    }
}

/* Whole layer 4 is a multiple of 8, as a first fragment's must be. */
static void build_l4(struct frame *f, const char *s)
{
    bool payload = s[1] != 's';

    switch (*s) {
    case 't':
        frame_tcp(f, 1000, 80, 0x01020304, 0x05060708, MOAT_TCP_ACK, 500);
        frame_data(f, payload ? 28 : 0);
        break;
    case 'T':
        frame_tcp(f, 1000, 80, 0x01020304, 0, MOAT_TCP_SYN, 500);
        frame_wscale(f, 7);
        frame_data(f, payload ? 24 : 0);
        break;
    case 'u':
        frame_udp(f, 1000, 53);
        frame_data(f, payload ? 24 : 0);
        break;
    case 'i':
        frame_icmp(f, f->family == 4 ? 8 : 128, 0, 7);
        frame_data(f, payload ? 24 : 0);
        break;
    default:
        frame_data(f, 24);
    }
}

void frame_spell(struct frame *f, const char *s, bool back)
{
    static const uint8_t options[8] = {1, 1, 1, 1, 1, 1, 1, 1};

    frame_eth(f, letters_mac_b, letters_mac_a);
    for (; *s && *s != 'p' && *s != 's'; s++) {
        if (*s == 'v' || *s == 'q') {
            frame_vlan(f, *s == 'v' ? 0x8100 : 0x88a8, *s == 'v' ? 100 : 0x2000 | 200);
        } else if (*s == 'a') {
            frame_arp(f, 1, letters_mac_a, letters_a4, letters_mac_b, letters_b4);
        } else if (*s == 'r') {
            frame_rarp(f, letters_mac_a);
        } else if (*s == 'x') {
            memcpy(f->data + f->type_off, "\x88\xcc", 2);
        } else if (*s == '4' || *s == '6') {
            build_ip(f, s, back);
        } else if (*s == 'o') {
            frame_bytes(f, options, sizeof options);
            f->data[f->ip_off] += 2;
            f->l4_off = f->len;
        } else if (strchr("hdRAmHSFL0", *s)) {
            build_ext(f, *s);
        } else {
            build_l4(f, s);
        }
    }
    frame_end(f);
    if (*s == 'p')
        frame_data(f, 10);
}

void frame_patch(struct frame *f, const struct patch p[4])
{
    for (int i = 0; i < 4 && p[i].where; i++) {
        const uint32_t base[] = {
            [ETH] = 0, [IP] = f->ip_off, [EXT] = f->ip6_next_off, [L4] = f->l4_off};

        f->data[base[p[i].where] + p[i].off] = p[i].value;
    }
}
