/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/lib/rig.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t rig_clock_ms = 1000000;

const char *const rig_vnic[RIG_SLOTS] = {"vnic-a", "vnic-b", "vnic-c"};
const uint8_t rig_mac[RIG_SLOTS][6] = {{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}, {2, 0, 0, 0, 0, 3}};
const uint8_t rig_ip4[RIG_SLOTS][4] = {{10, 0, 0, 1}, {10, 0, 0, 2}, {10, 0, 0, 3}};
const uint8_t rig_ip6[RIG_SLOTS][16] = {
    {0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1},
    {0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2},
    {0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3},
};

static uint64_t now_ms(void)
{
    return __atomic_load_n(&rig_clock_ms, __ATOMIC_RELAXED);
}

struct rig_injected rig_injected[RIG_INJECTED];
unsigned rig_n_injected;

void rig_forget(void)
{
    rig_n_injected = 0;
}

static void inject(struct moat_port *port, enum moat_dir dir, const uint8_t *frame, uint32_t len)
{
    unsigned i = __atomic_fetch_add(&rig_n_injected, 1, __ATOMIC_RELAXED);

    ck_assert_uint_le(len, sizeof rig_injected->frame);
    if (i >= RIG_INJECTED)
        return;
    rig_injected[i].port = port;
    rig_injected[i].dir = dir;
    rig_injected[i].len = len;
    memcpy(rig_injected[i].frame, frame, len);
}

void rig_pass_time(struct rig *r, uint64_t ms)
{
    for (; ms; ms -= ms < 50 ? ms : 50) {
        __atomic_fetch_add(&rig_clock_ms, ms < 50 ? ms : 50, __ATOMIC_RELAXED);
        moat_engine_turn(r->e);
    }
}

bool rig_event(struct rig *r, enum moat_event_type type, struct moat_event *ev)
{
    while (moat_event_take(&r->e->events, ev))
        if (ev->type == type)
            return true;
    return false;
}

static void path_of(unsigned slot, char *buf, size_t size)
{
    snprintf(buf, size, "/run/test/%s.sock", rig_vnic[slot]);
}

static void addrs_of(unsigned slot, struct moat_addr out[2])
{
    memset(out, 0, 2 * sizeof *out);
    out[0].family = 4;
    out[0].plen = 32;
    memcpy(out[0].addr, rig_ip4[slot], 4);
    out[1].family = 6;
    out[1].plen = 128;
    memcpy(out[1].addr, rig_ip6[slot], 16);
}

static struct moat_inventory *make_inventory(void)
{
    static const char *const names[] = {"a", "b", "c"};
    struct moat_inventory *inv = moat_inventory_create();
    struct moat_network_spec net = {.name = "net"};

    ck_assert_ptr_nonnull(inv);
    ck_assert_int_eq(moat_inventory_add_network(inv, &net), 0);
    for (unsigned i = 0; i < RIG_SLOTS; i++) {
        char uuid[40];
        struct moat_addr addrs[2];
        struct moat_label label = {"role", names[i]};
        struct moat_vm_spec vm = {.uuid = uuid, .name = names[i], .labels = &label, .n_labels = 1};
        struct moat_vnic_spec vnic = {.id = rig_vnic[i], .vm = i, .addrs = addrs, .n_addrs = 2};

        snprintf(uuid, sizeof uuid, "00000000-0000-0000-0000-%012u", i + 1);
        addrs_of(i, addrs);
        memcpy(vnic.mac, rig_mac[i], 6);
        ck_assert_int_eq(moat_inventory_add_vm(inv, &vm), (int)i);
        ck_assert_int_eq(moat_inventory_add_vnic(inv, &vnic), (int)i);
    }
    return inv;
}

void rig_create_sized(struct rig *r, const char *mapping, uint32_t n_sessions)
{
    static const uint64_t seed[4] = {11, 22, 33, 44};
    struct moat_engine_conf conf = {.mapping = mapping,
                                    .n_slots = RIG_SLOTS + 1,
                                    .n_sessions = n_sessions,
                                    .now_ms = now_ms,
                                    .seed = seed,
                                    .inject = inject};
    char err[256] = "";

    memset(r, 0, sizeof *r);
    rig_forget();
    r->e = moat_engine_create(&conf, err, sizeof err);
    ck_assert_msg(r->e != NULL, "%s", err);
    r->inv = make_inventory();
    for (unsigned i = 0; i < RIG_SLOTS; i++) {
        char path[MOAT_PATH_MAX];

        path_of(i, path, sizeof path);
        r->port[i] = moat_port_register(r->e, path);
        ck_assert_ptr_nonnull(r->port[i]);
        moat_port_connected(r->port[i], true);
        moat_port_started(r->port[i]);
    }
}

struct moat_engine *rig_successor(struct rig *r, struct moat_handover *offer, bool by_records,
                                  uint32_t n_sessions)
{
    struct moat_engine_conf conf = r->e->conf;
    struct moat_engine *e;
    char err[256] = "";

    moat_handover_offer(r->e, offer);
    conf.before = offer;
    conf.by_records = by_records;
    conf.n_sessions = n_sessions;
    conf.n_sessions6 = n_sessions / 2;
    e = moat_engine_create(&conf, err, sizeof err);
    ck_assert_msg(e != NULL, "%s", err);
    return e;
}

void rig_succeed(struct rig *r, struct moat_engine *e)
{
    moat_handover_finish(e);
    moat_engine_destroy(r->e);
    r->e = e;
    for (unsigned i = 0; i < RIG_SLOTS; i++)
        r->port[i] = e->ports[i];
}

void rig_exchange(struct rig *r, bool by_records, uint32_t n_sessions)
{
    static struct moat_handover offer;
    struct moat_engine *e = rig_successor(r, &offer, by_records, n_sessions);
    char err[256] = "";

    ck_assert_msg(!moat_handover_prepare(e, err, sizeof err), "%s", err);
    ck_assert_msg(!moat_handover_take(e, err, sizeof err), "%s", err);
    rig_succeed(r, e);
}

void rig_create(struct rig *r, const char *mapping)
{
    rig_create_sized(r, mapping, 4096);
}

void rig_destroy(struct rig *r)
{
    moat_engine_destroy(r->e);
    moat_inventory_destroy(r->inv);
}

void rig_conf(unsigned slot, enum moat_slot_state state, struct moat_slot_conf *c)
{
    memset(c, 0, sizeof *c);
    snprintf(c->vnic, sizeof c->vnic, "%s", rig_vnic[slot]);
    snprintf(c->vm, sizeof c->vm, "%c", "abc"[slot]);
    snprintf(c->network, sizeof c->network, "net");
    path_of(slot, c->path, sizeof c->path);
    memcpy(c->mac, rig_mac[slot], 6);
    addrs_of(slot, c->addrs);
    c->n_addrs = 2;
    c->state = (uint8_t)state;
    moat_settings_init(&c->settings);
    c->epoch = 1;
}

void rig_claim(struct rig *r, unsigned slot, enum moat_slot_state state)
{
    struct moat_slot_conf c;
    char err[256] = "";

    rig_conf(slot, state, &c);
    ck_assert_msg(!moat_slot_claim(r->e, &c, err, sizeof err), "%s", err);
}

void rig_settings(struct rig *r, unsigned slot, const struct moat_settings *settings)
{
    struct moat_slot_conf c;
    char err[256] = "";

    rig_conf(slot, MOAT_SLOT_ACTIVE, &c);
    c.settings = *settings;
    ck_assert_msg(!moat_slot_claim(r->e, &c, err, sizeof err), "%s", err);
}

void rig_publish(struct rig *r, unsigned slot, const char *text)
{
    struct moat_diags *diags = moat_diags_create();
    struct moat_policy *p = moat_policy_parse(text, strlen(text), "test", diags);
    char *said = moat_diags_text(diags), err[256] = "";
    uint8_t *blob;
    size_t len;

    ck_assert_msg(p != NULL, "%s", said);
    ck_assert_int_eq(moat_policy_compile(p, r->inv, slot, ++r->generation, &blob, &len, diags), 0);
    ck_assert_msg(!moat_slot_publish(r->e, rig_vnic[slot], blob, len, err, sizeof err), "%s", err);
    free(blob);
    free(said);
    moat_policy_destroy(p);
    moat_diags_destroy(diags);
}

void rig_start(struct rig *r, const char *mapping, const char *policy)
{
    rig_create(r, mapping);
    for (unsigned i = 0; i < RIG_SLOTS; i++) {
        rig_claim(r, i, MOAT_SLOT_ACTIVE);
        rig_publish(r, i, policy);
    }
}

bool rig_push(struct rig *r, unsigned slot, enum moat_dir dir, const uint8_t *frame, uint32_t len,
              enum moat_reason *reason)
{
    struct moat_pkt p = rig_pkt(frame, len, len);
    uint32_t passed = moat_pipe_burst(moat_thread_self(r->e), r->port[slot], dir, &p, 1);

    ck_assert_uint_eq(passed & ~1u, 0);
    if (reason)
        *reason = passed ? MOAT_R_NONE : (enum moat_reason)p.reason;
    return passed;
}

bool rig_between(struct rig *r, unsigned from, unsigned to, const uint8_t *frame, uint32_t len)
{
    return rig_push(r, from, MOAT_FROM_VM, frame, len, NULL) &&
           rig_push(r, to, MOAT_TO_VM, frame, len, NULL);
}

uint64_t rig_counter(struct rig *r, unsigned slot, unsigned counter)
{
    uint64_t all[MOAT_N_COUNTERS];
    int i = moat_slot_find(r->e, rig_vnic[slot]);

    ck_assert_int_ge(i, 0);
    moat_engine_counters(r->e, (uint32_t)i, all);
    return all[counter];
}
