/* SPDX-License-Identifier: Apache-2.0 */

/* Engines that are exchanged: the verdicts and the sessions are those of one engine that stays, and
 * what ports, slots and people know goes along. */

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "datapath/mapping.h"
#include "tests/lib/gen_policy.h" /* moat_gen_seed() */
#include "tests/lib/stream.h"
#include "tests/lib/vm_frame.h"

#define TABLE 2048

static char path[] = "/dev/shm/moat-test-XXXXXX";

static const char policy[] = "policy \"t\" version 1\n"
                             "tier t { allow from any to any service tcp, udp }\n"
                             "default drop log\n";

static void make_path(void)
{
    int fd = mkstemp(path);

    ck_assert_int_ge(fd, 0);
    close(fd);
}

static void remove_path(void)
{
    unlink(path);
}

/* --- verdicts --- */

static struct stream stream;
static stream_verdicts expected;

enum way { SHARED, BY_RECORDS, IN_TURN, N_WAYS };
static const char *const way_names[] = {"shared", "by records", "both in turn"};

/* All sessions of a table, by key; what the table makes of them is not compared. */
struct all {
    struct moat_session_whole w[TABLE];
    uint32_t n;
};

static int by_key(const void *a_, const void *b_)
{
    const struct moat_session_whole *a = a_, *b = b_;
    int order = memcmp(&a->s.key, &b->s.key, sizeof a->s.key);

    order = order ? order : memcmp(a->local6, b->local6, 16);
    return order ? order : memcmp(a->remote6, b->remote6, 16);
}

static void read_all(const struct rig *r, struct all *all)
{
    memset(all, 0, sizeof *all);
    for (uint32_t i = 0; i < moat_session_table_size(r->e->sessions); i++)
        if (moat_session_at(r->e->sessions, i)->key.tag)
            moat_session_read(r->e->sessions, moat_session_at(r->e->sessions, i),
                              &all->w[all->n++]);
    qsort(all->w, all->n, sizeof *all->w, by_key);
}

/* An exchange under way: packets come between its steps, too. */
struct under_way {
    struct moat_handover offer;
    struct moat_engine *next; /* NULL: none is */
    bool prepared;
    unsigned done;
};

static void begin(struct rig *r, struct under_way *x, enum way way)
{
    x->next =
        rig_successor(r, &x->offer, way == BY_RECORDS || (way == IN_TURN && x->done % 2), TABLE);
    x->prepared = false;
}

static void prepare(struct under_way *x)
{
    char err[256] = "";

    ck_assert_msg(!moat_handover_prepare(x->next, err, sizeof err), "%s", err);
    x->prepared = true;
}

static void take_and_compare(struct rig *r, struct under_way *x)
{
    static struct all before, after;
    uint32_t sessions[RIG_SLOTS], half_open[RIG_SLOTS];
    char err[256] = "";

    for (unsigned s = 0; s < RIG_SLOTS; s++) {
        sessions[s] = r->e->slots[s].sessions;
        half_open[s] = r->e->slots[s].half_open;
    }
    read_all(r, &before);
    ck_assert_msg(!moat_handover_take(x->next, err, sizeof err), "%s", err);
    rig_succeed(r, x->next);
    read_all(r, &after);
    ck_assert_uint_eq(before.n, after.n);
    ck_assert_mem_eq(before.w, after.w, before.n * sizeof *before.w);
    for (unsigned s = 0; s < RIG_SLOTS; s++) {
        ck_assert_uint_eq(r->e->slots[s].sessions, sessions[s]);
        ck_assert_uint_eq(r->e->slots[s].half_open, half_open[s]);
    }
    x->next = NULL;
    x->done++;
}

static void make_stream(void)
{
    stream_compile();
    stream_make(&stream, moat_gen_seed(20261127), 24, false);
    stream_reference(&stream, TABLE, expected);
    stream_check(&stream, expected, "stream");
}

/* Packets from one begin to the next, and from there to the last prepare, behind which one more
 * comes, but no change of policy: the control thread stands still. */
#define ROUND 29
#define PREPARE_AT 13

START_TEST(exchanged_while_packets_come)
{
    static stream_verdicts got;
    static struct under_way x;
    struct rig r;

    make_path();
    stream_reset();
    memset(got, STREAM_NOT_PUSHED, sizeof got);
    stream_start(&r, path, TABLE);
    for (unsigned k = 0; k < stream.n_steps; k++) {
        const struct step *st = &stream.steps[k];

        if (x.next && x.prepared)
            take_and_compare(&r, &x);
        stream_begin(&r, st);
        for (unsigned i = st->first; i < st->first + st->n; i++) {
            stream_push_one(&r, &stream, i, got);
            if (x.next && x.prepared)
                take_and_compare(&r, &x);
            if (i % ROUND == 0)
                begin(&r, &x, (enum way)_i);
            if (x.next && i % ROUND == PREPARE_AT)
                prepare(&x);
        }
    }
    ck_assert_uint_ge(x.done, STREAM_PACKETS / ROUND - 1);
    ck_assert_uint_eq(r.e->replacements, x.done);
    rig_destroy(&r);
    remove_path();
    stream_compare(&stream, expected, got, way_names[_i]);
}
END_TEST

/* --- what goes along --- */

static struct rig r;

static void start(void)
{
    make_path();
    rig_clock_ms = 1000000;
    rig_start(&r, path, policy);
}

static void stop(void)
{
    rig_destroy(&r);
    remove_path();
}

static bool send_udp(unsigned from, unsigned to, uint16_t sport, uint16_t dport)
{
    struct frame f = vm_udp(from, to, sport, dport);

    return rig_between(&r, from, to, f.data, f.len);
}

static bool by_records(int i)
{
    return i == BY_RECORDS;
}

START_TEST(counters_hits_and_events)
{
    uint64_t passed, refused;
    struct moat_event ev;
    struct moat_rule_hit hits[64];
    uint64_t all_hits = 0;
    uint32_t next;
    int n;

    for (uint16_t i = 0; i < 5; i++)
        ck_assert(send_udp(0, 1, (uint16_t)(1000 + i), 53));
    passed = rig_counter(&r, 1, MOAT_C_TO_VM_PKTS);
    refused = rig_counter(&r, 0, MOAT_C_FROM_VM_PKTS);
    ck_assert_uint_eq(passed, 5);
    rig_forget();
    while (moat_event_take(&r.e->events, &ev))
        ;
    ev = (struct moat_event){.type = MOAT_EV_CUT, .value = 77};
    moat_event_post(&r.e->events, &ev, false);

    rig_exchange(&r, by_records(_i), 4096);
    ck_assert_uint_eq(rig_counter(&r, 1, MOAT_C_TO_VM_PKTS), passed);
    ck_assert_uint_eq(rig_counter(&r, 0, MOAT_C_FROM_VM_PKTS), refused);
    ck_assert(send_udp(0, 1, 2000, 53));
    ck_assert_uint_eq(rig_counter(&r, 1, MOAT_C_TO_VM_PKTS), passed + 1);
    n = moat_slot_hits(r.e, rig_vnic[1], 0, 64, hits, &next);
    for (int i = 0; i < n; i++)
        all_hits += hits[i].hits;
    ck_assert_uint_eq(all_hits, 6);
    ck_assert(rig_event(&r, MOAT_EV_CUT, &ev));
    ck_assert_int_eq(ev.value, 77);
    ck_assert_uint_gt(ev.time_us, 0);
}
END_TEST

START_TEST(ports_and_what_waits_in_them)
{
    static const uint8_t frame[] = {1, 2, 3, 4, 5}, longer[300] = {9};
    uint8_t out[MOAT_PENDING_FRAME_MAX];
    struct moat_port_info info;

    moat_port_logging(r.port[2], true);
    moat_port_connected(r.port[2], false);
    r.port[1]->vid = 17;
    ck_assert(moat_pending_push(&r.port[0]->pending, frame, sizeof frame));
    ck_assert(moat_pending_push(&r.port[0]->pending, longer, sizeof longer));
    /* Plugged again: another VM's, until somebody says it is not. */
    moat_port_register(r.e, r.port[1]->path);

    rig_exchange(&r, by_records(_i), 4096);
    ck_assert_uint_eq(r.e->n_ports, RIG_SLOTS);
    ck_assert_uint_eq(moat_pending_pop(&r.port[0]->pending, out, sizeof out), sizeof frame);
    ck_assert_mem_eq(out, frame, sizeof frame);
    ck_assert_uint_eq(moat_pending_pop(&r.port[0]->pending, out, sizeof out), sizeof longer);
    ck_assert_uint_eq(moat_pending_pop(&r.port[0]->pending, out, sizeof out), 0);
    ck_assert_int_eq(r.port[1]->vid, 17);
    ck_assert_int_eq(r.port[0]->vid, -1);
    ck_assert(moat_port_info(r.e, 1, &info));
    ck_assert(info.replugged && !info.claimed);
    ck_assert(moat_port_info(r.e, 2, &info));
    ck_assert(!info.connected && info.claimed);
    ck_assert(!send_udp(0, 1, 1000, 53));
    rig_claim(&r, 1, MOAT_SLOT_ACTIVE);
    ck_assert(send_udp(0, 1, 1000, 53));
}
END_TEST

/* A vNIC that comes after must not meet sessions of one that went before. */
START_TEST(a_free_slot_keeps_its_incarnation)
{
    uint32_t tag = r.e->slots[0].view->tag;
    char err[256];

    ck_assert(send_udp(0, 2, 1000, 53));
    ck_assert_int_eq(moat_slot_release(r.e, rig_vnic[0], err, sizeof err), 0);
    rig_exchange(&r, by_records(_i), 4096);
    rig_claim(&r, 0, MOAT_SLOT_ACTIVE);
    rig_publish(&r, 0, "policy \"t\" version 1\ntier t { }\ndefault drop\n");
    ck_assert_uint_ne(r.e->slots[0].view->tag, tag);
    ck_assert(!send_udp(0, 2, 1000, 53));
    ck_assert_uint_eq(r.e->slots[0].sessions, 0);
}
END_TEST

/* What a slot is in the middle of: learning, enrolling, a sweep. */
START_TEST(slots_in_the_middle_of_something)
{
    struct moat_settings settings;
    struct moat_slot_info before, after;
    struct moat_ctl_state enroll = {.state = MOAT_SLOT_ENROLLING, .pickup_s = 30};
    struct moat_event ev;
    char err[256];

    moat_settings_init(&settings);
    settings.spoof = MOAT_SPOOF_LEARN;
    rig_settings(&r, 0, &settings);
    snprintf(enroll.vnic, sizeof enroll.vnic, "%s", rig_vnic[1]);
    ck_assert_int_eq(moat_slot_set_state(r.e, &enroll, err, sizeof err), 0);
    ck_assert(send_udp(0, 2, 1000, 53));
    moat_settings_init(&settings);
    settings.quarantine = 1;
    rig_settings(&r, 2, &settings);
    rig_publish(&r, 2, "policy \"t\" version 1\ntier t { }\ndefault drop\n");
    ck_assert_uint_gt(r.e->sweep_left, 0);
    ck_assert(moat_slot_info(r.e, 1, &before));
    ck_assert_uint_eq(before.enroll_left_s, 30);

    rig_exchange(&r, by_records(_i), 4096);
    ck_assert(moat_slot_info(r.e, 1, &after));
    ck_assert_mem_eq(&before, &after, sizeof before);
    rig_pass_time(&r, 1000);
    ck_assert(rig_event(&r, MOAT_EV_CUT, &ev));
    ck_assert_int_eq(ev.value, 1);
    rig_pass_time(&r, 30000);
    ck_assert(moat_slot_info(r.e, 1, &after));
    ck_assert_uint_eq(after.state, MOAT_SLOT_ACTIVE);
}
END_TEST

/* --- what is refused, or called off, changes nothing --- */

static void nothing_has_happened(uint16_t sport)
{
    uint32_t sessions = r.e->slots[0].sessions;

    ck_assert(send_udp(0, 1, sport, 53));
    ck_assert_uint_eq(r.e->slots[0].sessions, sessions + 1);
    rig_pass_time(&r, 100);
}

START_TEST(a_vnic_that_is_being_moved)
{
    struct moat_ctl_state precopy = {.state = MOAT_SLOT_ACTIVE, .precopy = 1};
    static struct moat_handover offer;
    char err[256] = "";
    struct moat_engine *e;

    ck_assert(send_udp(0, 1, 999, 53));
    snprintf(precopy.vnic, sizeof precopy.vnic, "%s", rig_vnic[2]);
    ck_assert_int_eq(moat_slot_set_state(r.e, &precopy, err, sizeof err), 0);
    e = rig_successor(&r, &offer, by_records(_i), 4096);
    ck_assert_int_eq(moat_handover_take(e, err, sizeof err), -EAGAIN);
    ck_assert_ptr_nonnull(strstr(err, rig_vnic[2]));
    nothing_has_happened(1000);
    precopy.precopy = 0;
    ck_assert_int_eq(moat_slot_set_state(r.e, &precopy, err, sizeof err), 0);
    ck_assert_int_eq(moat_handover_prepare(e, err, sizeof err), 0);
    ck_assert_int_eq(moat_handover_take(e, err, sizeof err), 0);
    rig_succeed(&r, e);
    ck_assert_uint_eq(r.e->slots[0].sessions, 2);
    nothing_has_happened(1001);
}
END_TEST

START_TEST(called_off)
{
    static struct moat_handover offer;
    struct moat_engine *e = rig_successor(&r, &offer, by_records(_i), 4096);
    char next[sizeof path + 16];

    moat_handover_cancel(e);
    moat_engine_destroy(e);
    nothing_has_happened(1000);
    ck_assert_ptr_null(r.e->watch);
    moat_mapping_next_name(path, next, sizeof next);
    ck_assert_int_ne(access(next, F_OK), 0);
    rig_exchange(&r, by_records(_i), 4096);
    nothing_has_happened(1001);
}
END_TEST

static void expect_refused(struct moat_handover *offer, uint32_t n_slots, uint32_t n_sessions,
                           const char *why)
{
    struct moat_engine_conf conf = r.e->conf;
    char err[256] = "";

    conf.before = offer;
    conf.n_slots = n_slots;
    conf.n_sessions = n_sessions;
    conf.n_sessions6 = n_sessions / 2;
    ck_assert_ptr_null(moat_engine_create(&conf, err, sizeof err));
    ck_assert_msg(strstr(err, why) != NULL, "%s", err);
    ck_assert_ptr_null(r.e->watch);
}

START_TEST(engines_that_cannot)
{
    struct moat_handover offer, other;

    for (uint16_t i = 0; i < 200; i++)
        ck_assert(send_udp(0, 1, (uint16_t)(1000 + i), 53));
    moat_handover_offer(r.e, &offer);
    other = offer;
    other.version++;
    expect_refused(&other, 4, 4096, "restart the switch");
    other = offer;
    other.conf_size++;
    expect_refused(&other, 4, 4096, "restart the switch");
    expect_refused(&offer, 3, 4096, "room for 3 slots");
    expect_refused(&offer, 4, 64, "no room for a session");
    nothing_has_happened(5000);
    rig_exchange(&r, false, 8192); /* does not fit, therefore by records */
    ck_assert_uint_eq(r.e->slots[0].sessions, 201);
    nothing_has_happened(5001);
}
END_TEST

/* Sessions end, and their tuples have sessions again, in other entries: behind theirs or before. */
static bool always(void *aux, const struct moat_session *s)
{
    (void)aux;
    (void)s;
    return true;
}

#define TUPLES 64

START_TEST(tuples_that_come_again)
{
    static struct under_way x;
    char err[256] = "";

    for (unsigned i = 0; i < TUPLES; i++)
        ck_assert(send_udp(0, 1, (uint16_t)(1000 + i), 53));
    begin(&r, &x, BY_RECORDS);
    prepare(&x);
    for (uint32_t i = 0; i < moat_session_table_size(r.e->sessions); i++)
        moat_session_remove_if(r.e->sessions, i, always, NULL);
    moat_session_reclaim(r.e->sessions, &r.e->qsbr);
    moat_session_reclaim(r.e->sessions, &r.e->qsbr);
    r.e->slots[0].sessions = r.e->slots[1].sessions = 0;
    for (unsigned i = 0; i < TUPLES; i++)
        ck_assert(send_udp(0, 1, (uint16_t)(1000 + (i * 37 + 5) % TUPLES), 53));
    if (_i)
        ck_assert_msg(!moat_handover_prepare(x.next, err, sizeof err), "%s", err);
    take_and_compare(&r, &x);
    ck_assert_uint_eq(r.e->slots[0].sessions, TUPLES);
    for (unsigned i = 0; i < TUPLES; i++)
        ck_assert(send_udp(1, 0, 53, (uint16_t)(1000 + i)));
}
END_TEST

/* The next process finds what the last engine left, in the file of that name. */
START_TEST(killed_after_it)
{
    struct stat st;
    char next[sizeof path + 16];
    int fd;

    ck_assert(send_udp(0, 1, 1000, 53));
    rig_exchange(&r, by_records(_i), 4096);
    ck_assert(send_udp(0, 1, 1001, 53));
    rig_destroy(&r);
    moat_mapping_next_name(path, next, sizeof next);
    fd = open(next, O_CREAT | O_WRONLY, 0600); /* or did not come to its end */
    ck_assert_int_ge(fd, 0);
    close(fd);
    rig_create(&r, path);
    ck_assert_uint_eq(r.e->recovered_slots, RIG_SLOTS);
    ck_assert_uint_eq(r.e->recovered_sessions, 4);
    ck_assert(send_udp(1, 0, 53, 1000));
    ck_assert_int_ne(stat(next, &st), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("handover");
    TCase *verdicts = tcase_create("verdicts"), *along = tcase_create("what goes along");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(verdicts, 240);
    tcase_add_unchecked_fixture(verdicts, make_stream, NULL);
    tcase_add_loop_test(verdicts, exchanged_while_packets_come, 0, N_WAYS);
    suite_add_tcase(s, verdicts);
    tcase_set_timeout(along, 60);
    tcase_add_checked_fixture(along, start, stop);
    tcase_add_loop_test(along, counters_hits_and_events, 0, 2);
    tcase_add_loop_test(along, ports_and_what_waits_in_them, 0, 2);
    tcase_add_loop_test(along, a_free_slot_keeps_its_incarnation, 0, 2);
    tcase_add_loop_test(along, slots_in_the_middle_of_something, 0, 2);
    tcase_add_loop_test(along, a_vnic_that_is_being_moved, 0, 2);
    tcase_add_loop_test(along, called_off, 0, 2);
    tcase_add_test(along, engines_that_cannot);
    tcase_add_loop_test(along, tuples_that_come_again, 0, 2);
    tcase_add_loop_test(along, killed_after_it, 0, 2);
    suite_add_tcase(s, along);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
