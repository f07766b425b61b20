/* SPDX-License-Identifier: Apache-2.0 */

/* Writes first inputs for the targets whose format a fuzzer would be long in finding:
 * fuzz_seed FOLDER makes FOLDER/{parse,ruleset,wire,replay}/. */

#include <sys/stat.h>

#include "control/agent/wire.h"
#include "tests/lib/blob.h"
#include "tests/lib/traffic.h"

#include "tests/fuzz/fuzz.h"

#define N_FRAMES 400

static const char *folder;

static void save(const char *target, unsigned n, const void *head, size_t head_len,
                 const void *rest, size_t len)
{
    char path[4096];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", folder, target);
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/%s/seed-%03u", folder, target, n);
    f = fopen(path, "wb");
    if (!f) {
        perror(path);
        exit(1);
    }
    fwrite(head, 1, head_len, f);
    fwrite(rest, 1, len, f);
    fclose(f);
}

static void seed_parse(void)
{
    static const uint8_t head[3] = {1, 3, 255}; /* no more bytes than are there; no cut */
    static struct traffic t;
    struct traffic_pkt p;
    struct choice c;

    choice_seed(&c, 1);
    traffic_init(&t, &c, 16);
    for (unsigned n = 0; n < N_FRAMES; n++) {
        traffic_next(&t, &p);
        save("parse", n, head, sizeof head, p.f.data, p.len < 300 ? p.len : 300);
    }
}

static void seed_ruleset(void)
{
    /* Sums are made right; two flows: TCP over IPv4 to port 80, echo request. */
    static const uint8_t head[] = {0,  2, 0, 0,  10, 0, 0, 1,  10, 0, 0, 2, 6, 0, 0, 0,
                                   80, 1, 0, 10, 0,  0, 1, 10, 0,  0, 2, 1, 0, 0, 0, 8};

    for (unsigned n = 0; n < 8; n++) {
        struct blob *b = blob_create();
        uint8_t *bytes;
        size_t len;

        for (unsigned i = 0; i < n; i++) {
            struct moat_rule *r = blob_rule(b, (uint8_t)((i + n) % 5), "rule");

            r->proto = i & 1 ? 6 : MOAT_PROTO_ANY;
            r->dport_hi = i & 2 ? 80 : 65535;
            if (i & 4)
                r->peer_set = blob_addresses(b, "10.0.0.0/30 2001:db8::/64");
        }
        bytes = blob_emit(b, &len);
        save("ruleset", n, head, sizeof head, bytes, len);
        free(bytes);
        blob_destroy(b);
    }
}

static void seed_wire(void)
{
    static uint8_t out[MOAT_WIRE_MAX];
    uint8_t record[MOAT_SES_FRAME_MAX] = {0};
    struct moat_ses_rec r = {.family = MOAT_FAM_IP4, .proto = 17, .side = {{.state = 1}}};

    moat_ses_encode(&r, record + 4);
    for (uint16_t type = 1; type < WIRE_N_TYPES; type++) {
        struct wire w = {.type = type, .vnic = "vnic", .host = "host", .text = "text", .epoch = 1};
        size_t len;

        rig_conf(0, MOAT_SLOT_ACTIVE, &w.conf);
        w.conf.path[0] = '\0';
        w.conf.state = 0;
        if (type == WIRE_SESSIONS) {
            w.n = 1;
            w.blob = record;
            w.blob_len = 4 + MOAT_SES_LEN4;
        }
        len = wire_encode(&w, out, sizeof out);
        HOLDS(len);
        save("wire", type, out, 0, out, len);
    }
}

static size_t put(uint8_t *to, const void *from, size_t n)
{
    memcpy(to, from, n);
    return n;
}

/* Some frames as pcap and as pcapng (one section, one interface, enhanced packet blocks), in
 * this machine's byte order. */
static void seed_replay(void)
{
    static const uint32_t pcap[6] = {0xa1b2c3d4, 4u << 16 | 2, 0, 0, 65535, 1};
    static const uint32_t section[7] = {0x0a0d0d0a, 28, 0x1a2b3c4d, 1, ~0u, ~0u, 28};
    static const uint32_t interface[5] = {1, 20, 1, 65535, 20};
    static uint8_t out[1 << 16];
    static struct traffic t;
    struct choice c;

    choice_seed(&c, 2);
    traffic_init(&t, &c, 3);
    for (unsigned n = 0; n < 24; n++) {
        size_t len = n & 1 ? put(out, section, sizeof section) : put(out, pcap, sizeof pcap);

        if (n & 1)
            len += put(out + len, interface, sizeof interface);
        for (unsigned i = 0; i < 2 + n / 2; i++) {
            struct traffic_pkt p;
            uint32_t cap, padded;

            traffic_next(&t, &p);
            cap = p.len < 120 ? p.len : 120;
            padded = (cap + 3) & ~3u;
            if (n & 1) {
                uint32_t head[7] = {6, 32 + padded, 0, 0x5f000, i * 1000, cap, p.total};

                len += put(out + len, head, sizeof head);
                memset(out + len, 0, padded);
                put(out + len, p.f.data, cap);
                len += padded;
                len += put(out + len, &head[1], 4);
            } else {
                uint32_t head[4] = {1700000000, i * 1000, cap, p.total};

                len += put(out + len, head, sizeof head);
                len += put(out + len, p.f.data, cap);
            }
        }
        save("replay", n, out, 0, out, len);
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: fuzz_seed FOLDER\n");
        return 2;
    }
    folder = argv[1];
    seed_parse();
    seed_ruleset();
    seed_wire();
    seed_replay();
    return 0;
}
