/* SPDX-License-Identifier: Apache-2.0 */

#include "rig.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <x86intrin.h>

#include "guests.h"

#define LONG_S 86400

static const uint64_t seed[4] = {1, 2, 3, 4};

void rig_die(const char *what)
{
    fprintf(stderr, "bench_core: %s\n", what);
    exit(1);
}

/* --- policy --- */

static const char one_rule[] =
    "policy \"bench\" version 1\n"
    "tier bench {\n"
    "    allow from vm \"a\" to vm \"b\" service udp 1000-2000, tcp 1000-2000\n"
    "}\n";

char *rig_many_rules(unsigned n)
{
    size_t size = 256 + n * 96u, at;
    char *text = malloc(size);

    if (!text)
        rig_die("no memory for rules");
    at = (size_t)snprintf(text, size, "policy \"bench\" version 1\ntier bench {\n");
    for (unsigned r = 0; r < n; r++)
        at += (size_t)snprintf(text + at, size - at,
                               "    allow from addresses 10.1.%u.%u to vm \"b\" service %s %u\n",
                               r >> 8, r & 255, r & 1 ? "tcp" : "udp", 1000 + r % 500);
    snprintf(text + at, size - at, "}\n");
    return text;
}

void rig_rule_flow(uint32_t c, int tcp, struct frame_flow *w)
{
    uint32_t r = c % (RIG_RULES / 2) * 2 + !!tcp;

    w->src = 0x0a010000u + r;
    w->dst = 0x0a000002u;
    w->sport = (uint16_t)(1024 + c / (RIG_RULES / 2));
    w->dport = (uint16_t)(1000 + r % 500);
    w->tcp = tcp;
}

/* --- engine and slots --- */

static void make_slot(struct rig *rig, struct guests *vms, unsigned i, const struct rig_conf *conf,
                      const char *policy)
{
    struct moat_settings *s = &vms->conf[i].settings;
    char err[256] = "";
    size_t len;
    uint8_t *blob = guests_ruleset(vms, i, policy, &len);

    if (!blob)
        rig_die("the policy cannot be compiled");
    s->max_sessions = conf->n_sessions;
    s->max_half_open = conf->max_half_open ? conf->max_half_open : conf->n_sessions;
    s->timers[MOAT_T_UDP_FIRST] = s->timers[MOAT_T_UDP_SINGLE] = s->timers[MOAT_T_UDP_MULTIPLE] =
        conf->udp_s ? conf->udp_s : LONG_S;
    rig->port[i] = moat_port_register(rig->engine, vms->conf[i].path);
    if (!rig->port[i] || moat_slot_claim(rig->engine, &vms->conf[i], err, sizeof err) ||
        moat_slot_publish(rig->engine, vms->conf[i].vnic, blob, len, err, sizeof err))
        rig_die(*err ? err : "no port");
    moat_port_connected(rig->port[i], true);
    moat_port_started(rig->port[i]);
    free(blob);
}

void rig_start(struct rig *rig, const struct rig_conf *conf)
{
    struct moat_engine_conf engine = {.mapping = getenv("MOAT_BENCH_MAPPING"),
                                      .n_slots = 4,
                                      .n_sessions = conf->n_sessions,
                                      .n_sessions6 = conf->n_sessions6,
                                      .now_ms = conf->now_ms,
                                      .seed = seed};
    char *many = conf->n_rules ? rig_many_rules(conf->n_rules) : NULL, err[256] = "";
    struct guests vms = {0};

    if (guests_add(&vms, "a,/run/bench/a.sock,02:00:00:00:00:01,10.0.0.1,fd00::1") ||
        guests_add(&vms, "b,/run/bench/b.sock,02:00:00:00:00:02,10.0.0.2,fd00::2"))
        rig_die("no such VMs");
    rig->engine = moat_engine_create(&engine, err, sizeof err);
    if (!rig->engine)
        rig_die(err);
    for (unsigned i = 0; i < 2; i++)
        make_slot(rig, &vms, i, conf, many ? many : one_rule);
    free(many);
}

void rig_stop(struct rig *rig)
{
    moat_engine_destroy(rig->engine);
}

void rig_forget_tables(void)
{
    const char *file = getenv("MOAT_BENCH_MAPPING");

    if (file)
        unlink(file);
}

uint32_t rig_room(uint64_t sessions)
{
    uint32_t room = 1024;

    while (room < sessions)
        room *= 2;
    return room;
}

/* --- threads and bursts --- */

static cpu_set_t only(unsigned core)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(core, &set);
    return set;
}

void rig_pin(unsigned core)
{
    cpu_set_t set = only(core);

    if (pthread_setaffinity_np(pthread_self(), sizeof set, &set))
        rig_die("two cores are needed");
}

void rig_thread_create(pthread_t *id, unsigned core, void *(*main)(void *), void *aux)
{
    cpu_set_t set = only(core);
    pthread_attr_t attr;

    if (pthread_attr_init(&attr) || pthread_attr_setaffinity_np(&attr, sizeof set, &set) ||
        pthread_create(id, &attr, main, aux))
        rig_die("no thread on a core of its own");
    pthread_attr_destroy(&attr);
}

void rig_thread_init(struct rig_thread *t, struct rig *rig, unsigned id)
{
    memset(t, 0, sizeof *t);
    t->rig = rig;
    t->random = 88172645463325252u + id * 0x9e3779b97f4a7c15u;
    t->len = FRAME;
    t->self = moat_thread_self(rig->engine);
    if (!t->self)
        rig_die("no thread context");
}

static uint32_t pass(struct rig_thread *t, int vm, enum moat_dir dir, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        t->pkts[i].data = t->frame[i];
        t->pkts[i].len = t->pkts[i].total = t->len;
    }
    return moat_pipe_burst(t->self, t->rig->port[vm], dir, t->pkts, n);
}

uint64_t rig_judge(struct rig_thread *t, int vm, enum moat_dir dir, unsigned n)
{
    uint64_t cycles = __rdtsc();
    uint32_t ok = pass(t, vm, dir, n);

    cycles = __rdtsc() - cycles;
    t->refused += n - (unsigned)__builtin_popcount(ok);
    return cycles;
}

uint64_t rig_judge_both(struct rig_thread *t, int back, unsigned n)
{
    uint64_t cycles = __rdtsc();
    uint32_t ok = pass(t, back, MOAT_FROM_VM, n);

    ok &= pass(t, !back, MOAT_TO_VM, n);
    cycles = __rdtsc() - cycles;
    t->refused += n - (unsigned)__builtin_popcount(ok);
    return cycles;
}

void rig_open(struct rig_thread *t, int tcp, uint32_t from, uint32_t to, bool both)
{
    static const struct {
        int back;
        uint8_t flags;
    } step[] = {{0, FRAME_SYN}, {1, FRAME_SYN | FRAME_ACK}, {0, FRAME_ACK}};

    for (uint32_t c = from; c < to; c += FRAME_BURST) {
        unsigned n = to - c < FRAME_BURST ? to - c : FRAME_BURST;

        for (unsigned s = 0; s < 3; s++) {
            for (unsigned i = 0; i < n; i++)
                frame_make(t->frame[i], tcp, c + i, step[s].back, step[s].flags);
            if (both)
                rig_judge_both(t, step[s].back, n);
            else
                rig_judge(t, RIG_B, step[s].back ? MOAT_FROM_VM : MOAT_TO_VM, n);
        }
    }
}

/* --- what has come of it --- */

static uint32_t slot_of(const struct rig *rig, int vm)
{
    const char *const vnic[2] = {"a-nic", "b-nic"};
    int index = moat_slot_find(rig->engine, vnic[vm]);

    if (index < 0)
        rig_die("a slot is gone");
    return (uint32_t)index;
}

uint32_t rig_sessions(const struct rig *rig, int vm)
{
    struct moat_slot_info info;

    if (!moat_slot_info(rig->engine, slot_of(rig, vm), &info))
        rig_die("a slot is gone");
    return info.sessions;
}

void rig_want(const struct rig_thread *t, int vm, uint32_t sessions)
{
    uint32_t have = rig_sessions(t->rig, vm);
    char text[120];

    if (!t->refused && have == sessions)
        return;
    snprintf(text, sizeof text, "%llu packets refused, %u sessions in place of %u",
             (unsigned long long)t->refused, have, sessions);
    rig_die(text);
}

uint64_t rig_counter(const struct rig *rig, int vm, unsigned which)
{
    uint64_t all[MOAT_N_COUNTERS];

    moat_engine_counters(rig->engine, slot_of(rig, vm), all);
    return all[which];
}
