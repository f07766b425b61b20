/* SPDX-License-Identifier: Apache-2.0 */

/* Packet threads in both directions of the same sessions, while the control thread
 * publishes, flushes, ages, exports and blocks.  Run under the thread sanitizer; what must
 * hold in any build: nothing forbidden ever passes, and the table's accounts agree. */

#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "datapath/transfer.h"
#include "tests/lib/packet.h"
#include "tests/lib/rig.h"

#define N_FLOWS 200
#define TURNS 400
#define PACKETS 200000 /* at least so many must have passed meanwhile */

static const char *const policies[2] = {
    "policy \"t\" version 1\nservice s = udp 53, tcp 80\n"
    "tier main { allow from vm \"a\" to vm \"b\" service s }\ndefault drop\n",
    "policy \"t\" version 1\nservice s = udp 53, tcp 80, udp 99\n"
    "tier main { allow log from vm \"a\" to vm \"b\" service s }\ndefault drop\n",
};

static struct rig r;
static bool stop; /* atomic */
static uint64_t leaked, passed;

static bool stopped(void)
{
    return __atomic_load_n(&stop, __ATOMIC_ACQUIRE);
}

static void make(struct frame *f, unsigned from, unsigned to, uint16_t sport, uint16_t dport)
{
    frame_eth(f, rig_mac[to], rig_mac[from]);
    frame_ip4(f, rig_ip4[from], rig_ip4[to], 17);
    frame_udp(f, sport, dport);
    frame_end(f);
}

static void burst(unsigned slot, enum moat_dir dir, struct frame *f, unsigned n, uint64_t *count)
{
    struct moat_pkt p[MOAT_BURST_MAX];
    uint32_t got;

    for (unsigned i = 0; i < n; i++)
        p[i] = rig_pkt(f[i].data, f[i].len, f[i].len);
    got = moat_pipe_burst(moat_thread_self(r.e), r.port[slot], dir, p, n);
    __atomic_fetch_add(count, (uint64_t)__builtin_popcount(got), __ATOMIC_RELAXED);
}

/* Requests leave a and reach b, answers leave b and reach a: which, says the argument. */
static void *flows(void *answers)
{
    static __thread struct frame f[16];

    while (!stopped())
        for (uint16_t i = 0; i < N_FLOWS && !stopped(); i += 16) {
            for (unsigned k = 0; k < 16; k++)
                if (answers)
                    make(&f[k], 1, 0, 53, (uint16_t)(1000 + i + k));
                else
                    make(&f[k], 0, 1, (uint16_t)(1000 + i + k), 53);
            burst(answers ? 1 : 0, MOAT_FROM_VM, f, 16, &passed);
            burst(answers ? 0 : 1, MOAT_TO_VM, f, 16, &passed);
        }
    return NULL;
}

static void *forbidden(void *arg)
{
    static __thread struct frame f[4];

    (void)arg;
    make(&f[0], 0, 1, 7, 54);
    make(&f[1], 0, 2, 7, 53);
    make(&f[2], 1, 0, 53, 7);
    make(&f[3], 2, 1, 7, 53);
    while (!stopped()) {
        burst(0, MOAT_FROM_VM, f, 2, &leaked);
        burst(1, MOAT_TO_VM, f, 1, &leaked);
        burst(1, MOAT_FROM_VM, f + 2, 1, &leaked);
        burst(1, MOAT_TO_VM, f + 3, 1, &leaked);
        burst(2, MOAT_FROM_VM, f + 3, 1, &leaked);
    }
    return NULL;
}

static void control(unsigned turn)
{
    static _Alignas(8) uint8_t buf[MOAT_CTL_MAX];
    struct moat_ctl_sessions ask = {.cursor = 0};
    struct moat_event ev;
    char err[128];

    __atomic_fetch_add(&rig_clock_ms, 700, __ATOMIC_RELAXED);
    moat_engine_turn(r.e);
    if (turn % 5 == 0)
        rig_publish(&r, turn % 2, policies[turn / 10 % 2]);
    if (turn % 17 == 0)
        moat_slot_flush(r.e, rig_vnic[turn % 2], err, sizeof err);
    if (turn % 23 == 0) {
        ck_assert_ptr_nonnull(moat_port_register(r.e, r.port[1]->path));
        rig_claim(&r, 1, MOAT_SLOT_ACTIVE);
    }
    ck_assert_int_gt(moat_transfer_export(r.e, &ask, buf, sizeof buf), 0);
    while (moat_event_take(&r.e->events, &ev))
        ;
}

START_TEST(nothing_leaks_whatever_happens_meanwhile)
{
    pthread_t t[5];
    uint64_t counted = 0;

    rig_start(&r, NULL, policies[0]);
    pthread_create(&t[0], NULL, flows, NULL);
    pthread_create(&t[1], NULL, flows, NULL);
    pthread_create(&t[2], NULL, flows, &r);
    pthread_create(&t[3], NULL, flows, &r);
    pthread_create(&t[4], NULL, forbidden, NULL);
    for (unsigned turn = 0;
         turn < TURNS || __atomic_load_n(&passed, __ATOMIC_RELAXED) < PACKETS; turn++)
        control(turn);
    __atomic_store_n(&stop, true, __ATOMIC_RELEASE);
    for (int i = 0; i < 5; i++)
        pthread_join(t[i], NULL);

    ck_assert_uint_eq(leaked, 0);
    ck_assert_uint_gt(passed, 0);
    for (unsigned i = 0; i < RIG_SLOTS; i++)
        counted += rig_counter(&r, i, MOAT_C_FROM_VM_PKTS) + rig_counter(&r, i, MOAT_C_TO_VM_PKTS);
    ck_assert_uint_eq(counted, passed);
    /* When all has aged away nothing is left, and no entry is lost. */
    rig_clock_ms += 1000 * 1000;
    for (int i = 0; i < 16; i++)
        moat_engine_turn(r.e);
    moat_session_thread_flush(r.e->sessions, moat_thread_self(r.e));
    ck_assert_uint_eq(moat_session_table_used(r.e->sessions), 0);
    rig_destroy(&r);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("threads");
    TCase *tc = tcase_create("all at once");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 200);
    tcase_add_test(tc, nothing_leaks_whatever_happens_meanwhile);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
