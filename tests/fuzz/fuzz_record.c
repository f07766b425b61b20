/* SPDX-License-Identifier: Apache-2.0 */

/* Bytes as session records of a migration: imported, exported and imported again, then met
 * by packets.  What is taken is what is given back; a refused request changes nothing.
 *
 * Each record is raw bytes, or one with sound lengths and its fields from the input; the
 * checksum is made right in most. */

#include <errno.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "datapath/transfer.h"
#include "tests/lib/packet.h"
#include "tests/lib/rig.h"

#include "tests/fuzz/fuzz.h"

#define SLOT 1
#define MAX_RECORDS 64

static struct rig rig;
static uint8_t frames[MAX_RECORDS * MOAT_SES_FRAME_MAX];
static _Alignas(8) uint8_t exported[sizeof(struct moat_ctl_sessions_reply) + 2 * sizeof frames];

static void start(void)
{
    rig_start(&rig, NULL,
              "policy \"f\" version 1\ntier t { allow from any to any service tcp 80, "
              "udp 53, icmp echo-request, icmp6 echo-request }\ndefault drop\n");
}

static void set_state(enum moat_slot_state state)
{
    struct moat_ctl_state st = {.state = (uint8_t)state};
    char err[256];

    snprintf(st.vnic, sizeof st.vnic, "%s", rig_vnic[SLOT]);
    HOLDS(!moat_slot_set_state(rig.e, &st, err, sizeof err));
}

/* A record with some sense: a tuple of the rig's VMs. */
static unsigned sound_record(struct choice *c, uint8_t *out)
{
    static const uint8_t protos[6] = {6, 17, 1, 58, 132, 6};
    struct moat_ses_rec r;

    memset(&r, 0, sizeof r);
    r.family = choice_below(c, 2) ? MOAT_FAM_IP6 : MOAT_FAM_IP4;
    r.proto = protos[choice_below(c, 6)];
    r.dir = (uint8_t)choice_below(c, 2);
    r.flags = (uint8_t)choice_below(c, 256);
    r.vlan = choice_below(c, 16) == 15 ? (uint16_t)choice_below(c, 5000) : 0;
    r.lport = (uint16_t)(choice_below(c, 2) ? 80 : choice_below(c, 65536));
    r.rport = (uint16_t)(1000 + choice_below(c, 4));
    r.generation = choice_below(c, 4);
    r.rule = choice_below(c, 256);
    r.idle_s = choice_below(c, 4) == 3 ? choice_32(c) : choice_below(c, 100);
    r.age_s = choice_below(c, 4) == 3 ? choice_32(c) : r.idle_s;
    for (int d = 0; d < 2; d++) {
        r.packets[d] = choice_below(c, 3);
        r.side[d].state = (uint8_t)choice_below(c, 8);
        r.side[d].wscale = (uint8_t)choice_below(c, 256);
        r.side[d].max_win = (uint16_t)choice_below(c, 65536);
        r.side[d].seq_lo = choice_32(c);
        r.side[d].seq_hi = choice_below(c, 2) ? choice_32(c) : r.side[d].seq_lo + 1000;
    }
    memcpy(r.local, r.family == MOAT_FAM_IP4 ? rig_ip4[SLOT] : rig_ip6[SLOT],
           r.family == MOAT_FAM_IP4 ? 4 : 16);
    memcpy(r.remote, r.family == MOAT_FAM_IP4 ? rig_ip4[0] : rig_ip6[0],
           r.family == MOAT_FAM_IP4 ? 4 : 16);
    return moat_ses_encode(&r, out);
}

static size_t make_frames(struct choice *c, uint32_t *n)
{
    size_t len = 0;

    for (*n = 0; *n < MAX_RECORDS && c->left; ++*n) {
        uint8_t *rec = frames + len + 4;
        unsigned how = choice_below(c, 8), size;

        if (how < 6) {
            size = sound_record(c, rec);
            for (; how == 5 && choice_below(c, 4) != 3 && c->left;)
                rec[choice_below(c, size)] = (uint8_t)choice_below(c, 256);
        } else {
            size = how == 6 ? MOAT_SES_LEN6 : MOAT_SES_LEN4;
            memset(rec, 0, size);
            choice_take(c, rec, size);
        }
        moat_put_be(rec - 4, XXH32(rec, size, MOAT_SES_MAGIC), 4);
        if (choice_below(c, 16) == 15)
            rec[-1] ^= 1;
        len += 4 + size;
    }
    return len;
}

static int import(uint32_t n, bool same_policy, const uint8_t *bytes, size_t len,
                  struct moat_ctl_import_reply *reply)
{
    struct moat_ctl_import head = {.n = n, .same_policy = same_policy};
    uint8_t *exact = fuzz_exact(bytes, len);
    char err[256] = "";
    int rc;

    snprintf(head.vnic, sizeof head.vnic, "%s", rig_vnic[SLOT]);
    rc = moat_transfer_import(rig.e, &head, exact, len, reply, err, sizeof err);
    HOLDS(rc ? err[0] && !reply->accepted : reply->accepted + reply->refused == n);
    free(exact);
    return rc;
}

/* Everything in the slot; each record decodes, and encodes to the same bytes. */
static uint32_t export(size_t *len)
{
    struct moat_ctl_sessions ask = {.cursor = 0};
    const struct moat_ctl_sessions_reply *reply = (void *)exported;
    const uint8_t *p = exported + sizeof *reply;
    int got;

    snprintf(ask.vnic, sizeof ask.vnic, "%s", rig_vnic[SLOT]);
    got = moat_transfer_export(rig.e, &ask, exported, sizeof exported);
    HOLDS(got >= (int)sizeof *reply && !reply->cursor);
    *len = (size_t)got - sizeof *reply;
    for (uint32_t i = 0; i < reply->n; i++) {
        uint8_t again[MOAT_SES_LEN6];
        struct moat_ses_rec r;
        uint64_t sum;
        unsigned n = moat_ses_decode(p + 4, *len - (size_t)(p + 4 - exported - sizeof *reply), &r);

        HOLDS(n && moat_ses_encode(&r, again) == n && !memcmp(again, p + 4, n));
        moat_get_be(p, &sum, 4);
        HOLDS(sum == XXH32(p + 4, n, MOAT_SES_MAGIC));
        p += 4 + n;
    }
    HOLDS(p == exported + got);
    return reply->n;
}

static uint32_t counted(void)
{
    struct moat_slot_info info;

    HOLDS(moat_slot_info(rig.e, (uint32_t)moat_slot_find(rig.e, rig_vnic[SLOT]), &info));
    return info.sessions;
}

/* Every frame of a is one of b's; both of len bytes. */
static void check_same(const uint8_t *a, const uint8_t *b, size_t len)
{
    for (size_t at = 0, n; at < len; at += n) {
        n = 4u + a[at + 5];
        HOLDS(memmem(b, len, a + at, n));
    }
}

/* Packets of the tuples that records have, both ways. */
static void meet(struct choice *c)
{
    for (unsigned i = 0; i < 16; i++) {
        bool out = i & 1;
        uint16_t far = (uint16_t)(1000 + i / 2 % 4);
        struct frame f;

        frame_eth(&f, rig_mac[out ? 0 : SLOT], rig_mac[out ? SLOT : 0]);
        if (i & 8)
            frame_ip4(&f, rig_ip4[out ? SLOT : 0], rig_ip4[out ? 0 : SLOT], 6);
        else
            frame_ip6(&f, rig_ip6[out ? SLOT : 0], rig_ip6[out ? 0 : SLOT], 6);
        frame_tcp(&f, out ? 80 : far, out ? far : 80, choice_32(c), choice_32(c),
                  (uint8_t)(choice_below(c, 64) ? MOAT_TCP_ACK : MOAT_TCP_RST), 1000);
        frame_end(&f);
        rig_push(&rig, SLOT, out ? MOAT_FROM_VM : MOAT_TO_VM, f.data, f.len, NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct moat_ctl_import_reply reply;
    struct choice c;
    uint32_t n, live, again;
    size_t len, cut, len2;
    int rc;

    if (!rig.e)
        start();
    choice_bytes(&c, input, size);
    cut = choice_below(&c, 256) < 240 ? 0 : choice_below(&c, 256);
    len = make_frames(&c, &n);
    set_state(MOAT_SLOT_ARRIVING);
    HOLDS(!counted());
    rc = import(n, n & 1, frames, cut < len ? len - cut : len, &reply);
    HOLDS(!rc || !counted());
    live = export(&len);
    HOLDS(live == counted() && (rc || live <= reply.accepted));

    /* The same again on a host where nothing is. */
    memcpy(frames, exported + sizeof(struct moat_ctl_sessions_reply), len);
    set_state(MOAT_SLOT_BLOCKED);
    set_state(MOAT_SLOT_ARRIVING);
    HOLDS(!import(live, true, frames, len, &reply) && reply.accepted == live);
    again = export(&len2);
    HOLDS(again == live && counted() == live && len2 == len);
    check_same(frames, exported + sizeof(struct moat_ctl_sessions_reply), len);

    set_state(MOAT_SLOT_ACTIVE);
    meet(&c);
    set_state(MOAT_SLOT_BLOCKED);
    moat_engine_turn(rig.e);
    moat_engine_turn(rig.e);
    return 0;
}
