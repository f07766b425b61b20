/* SPDX-License-Identifier: Apache-2.0 */

/* The life of ports and slots: what passes in each state, and what survives. */

#include "datapath/slot.h"

#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "datapath/slot_rec.h"
#include "tests/lib/rig.h"

static const char allow_udp[] = "policy \"t\" version 1\n"
                                "service any-udp = udp 1-65535\n"
                                "tier main { allow from any to any service any-udp }\n"
                                "default drop\n";

/* A UDP packet from VM `from` to VM `to`, by hand: 14 + 20 + 8 + 8 bytes. */
static uint32_t udp(uint8_t *f, unsigned from, unsigned to, uint16_t sport, uint16_t dport)
{
    static const uint8_t ip[12] = {0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0};

    memset(f, 0, 60);
    memcpy(f, rig_mac[to], 6);
    memcpy(f + 6, rig_mac[from], 6);
    f[12] = 8;
    memcpy(f + 14, ip, sizeof ip);
    memcpy(f + 26, rig_ip4[from], 4);
    memcpy(f + 30, rig_ip4[to], 4);
    f[34] = (uint8_t)(sport >> 8);
    f[35] = (uint8_t)sport;
    f[36] = (uint8_t)(dport >> 8);
    f[37] = (uint8_t)dport;
    f[39] = 16;
    return 60;
}

static bool sends(struct rig *r, unsigned slot, enum moat_reason *reason)
{
    uint8_t f[60];

    return rig_push(r, slot, MOAT_FROM_VM, f, udp(f, slot, 1, 1000, 2000), reason);
}

static void set_state(struct rig *r, unsigned slot, enum moat_slot_state state, int want)
{
    struct moat_ctl_state st = {.state = (uint8_t)state};
    char err[256];

    snprintf(st.vnic, sizeof st.vnic, "%s", rig_vnic[slot]);
    ck_assert_int_eq(moat_slot_set_state(r->e, &st, err, sizeof err), want);
}

static uint8_t state_of(struct rig *r, unsigned slot)
{
    struct moat_slot_info info;

    ck_assert(moat_slot_info(r->e, (uint32_t)moat_slot_find(r->e, rig_vnic[slot]), &info));
    return info.state;
}

START_TEST(ports_are_born_blocked)
{
    enum moat_reason reason;
    struct rig r;

    rig_create(&r, NULL);
    ck_assert(!sends(&r, 0, NULL));
    rig_claim(&r, 0, MOAT_SLOT_BLOCKED);
    rig_publish(&r, 0, allow_udp);
    ck_assert(!sends(&r, 0, &reason));
    ck_assert_int_eq(reason, MOAT_R_BLOCKED);
    set_state(&r, 0, MOAT_SLOT_ACTIVE, 0);
    ck_assert(sends(&r, 0, NULL));
    rig_destroy(&r);
}
END_TEST

START_TEST(a_slot_without_policy_does_what_its_setting_says)
{
    enum moat_reason reason;
    struct moat_slot_conf c;
    char err[256];
    struct rig r;

    rig_create(&r, NULL);
    rig_claim(&r, 0, MOAT_SLOT_ACTIVE);
    ck_assert(!sends(&r, 0, &reason));
    ck_assert_int_eq(reason, MOAT_R_NO_POLICY);
    rig_conf(0, MOAT_SLOT_ACTIVE, &c);
    c.settings.on_missing_policy = MOAT_FAIL_ALLOW;
    ck_assert_int_eq(moat_slot_claim(r.e, &c, err, sizeof err), 0);
    ck_assert(sends(&r, 0, NULL));
    ck_assert_uint_eq(rig_counter(&r, 0, MOAT_C_FAIL_ALLOWED), 1);
    rig_destroy(&r);
}
END_TEST

START_TEST(a_port_plugged_again_is_blocked_until_claimed)
{
    enum moat_reason reason;
    struct rig r;

    rig_start(&r, NULL, allow_udp);
    ck_assert(sends(&r, 0, NULL));
    ck_assert_ptr_eq(moat_port_register(r.e, r.port[0]->path), r.port[0]);
    moat_port_connected(r.port[0], true);
    moat_port_started(r.port[0]);
    ck_assert(!sends(&r, 0, &reason));
    ck_assert_int_eq(reason, MOAT_R_BLOCKED);
    ck_assert(sends(&r, 2, NULL));
    rig_claim(&r, 0, MOAT_SLOT_BLOCKED);
    ck_assert_int_eq(state_of(&r, 0), MOAT_SLOT_ACTIVE);
    ck_assert(sends(&r, 0, NULL));
    rig_destroy(&r);
}
END_TEST

START_TEST(refuses_what_it_must)
{
    struct moat_slot_conf c;
    struct moat_ctl_state st = {.state = MOAT_SLOT_ACTIVE, .epoch = 3};
    char err[256];
    struct rig r;

    rig_start(&r, NULL, allow_udp);
    rig_conf(0, MOAT_SLOT_ACTIVE, &c);
    snprintf(c.vnic, sizeof c.vnic, "another");
    ck_assert_int_eq(moat_slot_claim(r.e, &c, err, sizeof err), -EEXIST);
    snprintf(c.path, sizeof c.path, "/free");
    c.n_addrs = MOAT_ADDRS_MAX + 1;
    ck_assert_int_eq(moat_slot_claim(r.e, &c, err, sizeof err), -EINVAL);
    c.n_addrs = 1;
    c.addrs[0].plen = 33;
    ck_assert_int_eq(moat_slot_claim(r.e, &c, err, sizeof err), -EINVAL);
    c.addrs[0].plen = 32;
    c.state = MOAT_SLOT_FROZEN;
    ck_assert_int_eq(moat_slot_claim(r.e, &c, err, sizeof err), -EINVAL);
    c.state = MOAT_SLOT_ACTIVE;
    ck_assert_int_eq(moat_slot_claim(r.e, &c, err, sizeof err), 0);
    snprintf(c.vnic, sizeof c.vnic, "one too many");
    snprintf(c.path, sizeof c.path, "/other");
    ck_assert_int_eq(moat_slot_claim(r.e, &c, err, sizeof err), -ENOSPC);
    ck_assert_int_eq(moat_slot_publish(r.e, rig_vnic[0], "rubbish", 7, err, sizeof err), -EINVAL);
    ck_assert(sends(&r, 0, NULL));
    snprintf(st.vnic, sizeof st.vnic, "%s", rig_vnic[0]);
    ck_assert_int_eq(moat_slot_set_state(r.e, &st, err, sizeof err), 0);
    st.epoch = 2;
    ck_assert_int_eq(moat_slot_set_state(r.e, &st, err, sizeof err), -ESTALE);
    set_state(&r, 0, MOAT_SLOT_DEPARTED, -EINVAL);
    rig_destroy(&r);
}
END_TEST

static void *stop_port(void *port)
{
    moat_port_stopped(port);
    return NULL;
}

static void feed_destination(struct rig *r, uint32_t wait_ms)
{
    struct moat_ctl_state st = {.state = MOAT_SLOT_ACTIVE, .precopy = 1, .wait_ms = wait_ms};
    char err[256];

    snprintf(st.vnic, sizeof st.vnic, "%s", rig_vnic[0]);
    ck_assert_int_eq(moat_slot_set_state(r->e, &st, err, sizeof err), 0);
    moat_port_logging(r->port[0], true);
}

static bool await_event(struct rig *r, enum moat_event_type type)
{
    struct moat_event ev;

    for (int i = 0; i < 5000; i++) {
        while (moat_event_take(&r->e->events, &ev))
            if (ev.type == type)
                return true;
        usleep(1000);
    }
    return false;
}

/* As above, but only what is there now. */
static bool has_event(struct rig *r, enum moat_event_type type)
{
    struct moat_event ev;
    bool has = false;

    while (moat_event_take(&r->e->events, &ev))
        has |= ev.type == type;
    return has;
}

START_TEST(leaving_freezes_and_waits_for_the_hand_over)
{
    enum moat_reason reason;
    pthread_t vhost;
    char err[256];
    struct rig r;

    rig_start(&r, NULL, allow_udp);
    feed_destination(&r, 4000);
    ck_assert(sends(&r, 0, NULL));
    pthread_create(&vhost, NULL, stop_port, r.port[0]);
    ck_assert(await_event(&r, MOAT_EV_FROZEN));
    ck_assert(!sends(&r, 0, &reason));
    ck_assert_int_eq(reason, MOAT_R_FROZEN);
    ck_assert_int_eq(moat_slot_handed_over(r.e, rig_vnic[0], err, sizeof err), 0);
    pthread_join(vhost, NULL);
    ck_assert(!has_event(&r, MOAT_EV_WAIT_EXPIRED));
    set_state(&r, 0, MOAT_SLOT_DEPARTED, 0);
    ck_assert(!sends(&r, 0, &reason));
    ck_assert_int_eq(reason, MOAT_R_DEPARTED);
    /* Roll-back: the VM resumes here, the agent agrees. */
    moat_port_started(r.port[0]);
    ck_assert(!sends(&r, 0, NULL));
    set_state(&r, 0, MOAT_SLOT_ACTIVE, 0);
    ck_assert(sends(&r, 0, NULL));
    rig_destroy(&r);
}
END_TEST

START_TEST(the_wait_is_bounded_and_never_without_a_migration)
{
    struct rig r;

    rig_start(&r, NULL, allow_udp);
    moat_port_stopped(r.port[0]); /* shutdown: no wait, no freeze */
    ck_assert_int_eq(state_of(&r, 0), MOAT_SLOT_ACTIVE);
    moat_port_started(r.port[0]);
    feed_destination(&r, 30);
    moat_port_stopped(r.port[0]);
    ck_assert_int_eq(state_of(&r, 0), MOAT_SLOT_FROZEN);
    ck_assert(await_event(&r, MOAT_EV_WAIT_EXPIRED));
    rig_destroy(&r);
}
END_TEST

START_TEST(an_arriving_vm_is_held_until_opened)
{
    struct moat_event ev;
    enum moat_reason reason;
    int64_t held = -1;
    uint8_t f[60];
    struct rig r;

    rig_start(&r, NULL, allow_udp);
    moat_port_stopped(r.port[0]);
    set_state(&r, 0, MOAT_SLOT_ARRIVING, 0);
    ck_assert(moat_port_holds(r.port[0]));
    ck_assert(!rig_push(&r, 0, MOAT_TO_VM, f, udp(f, 1, 0, 1, 2), &reason));
    ck_assert_int_eq(reason, MOAT_R_ARRIVING);
    moat_port_started(r.port[0]);
    ck_assert(moat_port_holds(r.port[0]));
    rig_clock_ms += 7;
    while (moat_event_take(&r.e->events, &ev))
        ;
    set_state(&r, 0, MOAT_SLOT_ACTIVE, 0);
    ck_assert(!moat_port_holds(r.port[0]));
    while (moat_event_take(&r.e->events, &ev))
        if (ev.type == MOAT_EV_OPENED)
            held = ev.value;
    ck_assert_int_eq(held, 7000);
    ck_assert(sends(&r, 0, NULL));
    /* Ready before the rings start: opens by itself then, and not before. */
    moat_port_stopped(r.port[0]);
    set_state(&r, 0, MOAT_SLOT_ARRIVING, 0);
    set_state(&r, 0, MOAT_SLOT_ACTIVE, 0);
    ck_assert_int_eq(state_of(&r, 0), MOAT_SLOT_ARRIVING);
    moat_port_started(r.port[0]);
    ck_assert_int_eq(state_of(&r, 0), MOAT_SLOT_ACTIVE);
    rig_destroy(&r);
}
END_TEST

START_TEST(a_decision_made_before_the_claim_counts)
{
    struct rig r;

    rig_start(&r, NULL, allow_udp);
    moat_port_stopped(r.port[0]);
    set_state(&r, 0, MOAT_SLOT_ARRIVING, 0);
    ck_assert_ptr_nonnull(moat_port_register(r.e, r.port[0]->path)); /* plugged again */
    moat_port_started(r.port[0]);
    set_state(&r, 0, MOAT_SLOT_ACTIVE, 0);
    ck_assert_int_eq(state_of(&r, 0), MOAT_SLOT_BLOCKED);
    rig_claim(&r, 0, MOAT_SLOT_BLOCKED);
    ck_assert_int_eq(state_of(&r, 0), MOAT_SLOT_ACTIVE);
    rig_destroy(&r);
}
END_TEST

START_TEST(void_sessions_do_not_count)
{
    struct moat_slot_info info;
    char err[256];
    struct rig r;

    rig_start(&r, NULL, allow_udp);
    ck_assert(sends(&r, 0, NULL));
    ck_assert_int_eq(moat_slot_flush(r.e, rig_vnic[0], err, sizeof err), 0);
    ck_assert(moat_slot_info(r.e, 0, &info));
    ck_assert_uint_eq(info.sessions, 0);
    ck_assert(sends(&r, 0, NULL));
    for (int i = 0; i < 8; i++) /* ageing collects the void one, and counts it no more */
        moat_engine_turn(r.e);
    ck_assert(moat_slot_info(r.e, 0, &info));
    ck_assert_uint_eq(info.sessions, 1);
    rig_destroy(&r);
}
END_TEST

START_TEST(a_release_ends_the_wait)
{
    pthread_t vhost;
    char err[256];
    struct rig r;

    rig_start(&r, NULL, allow_udp);
    feed_destination(&r, 5000);
    pthread_create(&vhost, NULL, stop_port, r.port[0]);
    ck_assert(await_event(&r, MOAT_EV_FROZEN));
    ck_assert_int_eq(moat_slot_release(r.e, rig_vnic[0], err, sizeof err), 0);
    pthread_join(vhost, NULL);
    ck_assert(!has_event(&r, MOAT_EV_WAIT_EXPIRED));
    rig_destroy(&r);
}
END_TEST

START_TEST(a_hold_ends)
{
    struct rig r;

    rig_start(&r, NULL, allow_udp);
    moat_port_stopped(r.port[0]);
    set_state(&r, 0, MOAT_SLOT_ARRIVING, 0);
    moat_port_started(r.port[0]);
    rig_clock_ms += 900;
    moat_engine_turn(r.e);
    ck_assert(!has_event(&r, MOAT_EV_HOLD_EXPIRED));
    rig_clock_ms += 200;
    moat_engine_turn(r.e);
    ck_assert(await_event(&r, MOAT_EV_HOLD_EXPIRED));
    ck_assert_int_eq(state_of(&r, 0), MOAT_SLOT_ARRIVING);
    rig_clock_ms += 2000; /* the agent is silent */
    moat_engine_turn(r.e);
    ck_assert_int_eq(state_of(&r, 0), MOAT_SLOT_ACTIVE);
    rig_destroy(&r);
}
END_TEST

static void make_file(char *path)
{
    int fd = mkstemp(path);

    ck_assert_int_ge(fd, 0);
    close(fd);
}

START_TEST(slots_rulesets_and_sessions_survive)
{
    char path[] = "/tmp/moat-test-XXXXXX";
    struct moat_slot_info before, after;
    enum moat_reason reason;
    uint8_t f[60];
    struct rig r;

    make_file(path);
    rig_start(&r, path, allow_udp);
    ck_assert(sends(&r, 0, NULL));
    rig_publish(&r, 0, allow_udp);
    ck_assert(moat_slot_info(r.e, (uint32_t)moat_slot_find(r.e, rig_vnic[0]), &before));
    rig_destroy(&r);

    rig_create(&r, path);
    ck_assert_uint_eq(r.e->recovered_slots, 3);
    ck_assert_uint_eq(r.e->recovered_sessions, 1);
    ck_assert(moat_slot_info(r.e, (uint32_t)moat_slot_find(r.e, rig_vnic[0]), &after));
    ck_assert_mem_eq(before.digest, after.digest, 16);
    ck_assert_uint_eq(after.serial, before.serial);
    ck_assert_uint_eq(after.sessions, 1);
    /* The reply needs the session: no rule permits udp 2000 -> 1000 ... */
    rig_publish(&r, 0,
                "policy \"t\" version 1\nservice s = udp 2000\n"
                "tier main { allow from any to any service s }\ndefault drop\n");
    ck_assert(rig_push(&r, 0, MOAT_TO_VM, f, udp(f, 1, 0, 2000, 1000), NULL));
    /* ... as a look at another one shows. */
    ck_assert(!rig_push(&r, 0, MOAT_TO_VM, f, udp(f, 1, 0, 2001, 1000), &reason));
    ck_assert_int_eq(reason, MOAT_R_DEFAULT);
    rig_destroy(&r);
    unlink(path);
}
END_TEST

/* Sealed by somebody who was wrong, and sessions, which have no seal: nothing of it may pass more,
 * or for longer, than a slot could have been told to. */
START_TEST(what_is_recovered_is_not_believed_blindly)
{
    char path[] = "/tmp/moat-test-XXXXXX";
    struct moat_slot_info info;
    struct moat_slot_rec *rec;
    struct moat_slot_conf conf;
    struct moat_session *s;
    enum moat_reason reason;
    uint8_t f[60];
    struct rig r;

    make_file(path);
    rig_start(&r, path, allow_udp);
    ck_assert(sends(&r, 0, NULL));
    ck_assert(rig_push(&r, 0, MOAT_FROM_VM, f, udp(f, 0, 1, 1001, 2001), NULL));
    rec = &r.e->map->slots[moat_slot_find(r.e, rig_vnic[0])];
    moat_slot_rec_begin(rec);
    rec->pickup_until = UINT32_MAX;
    moat_slot_rec_commit(rec);
    rec = &r.e->map->slots[moat_slot_find(r.e, rig_vnic[1])];
    conf = rec->conf[rec->conf_index];
    conf.settings.timers[MOAT_T_UDP_MULTIPLE] = MOAT_TIMER_MAX + 1;
    moat_slot_rec_begin(rec);
    moat_slot_rec_set_conf(rec, &conf);
    moat_slot_rec_commit(rec);
    rec = &r.e->map->slots[moat_slot_find(r.e, rig_vnic[2])];
    moat_slot_rec_begin(rec);
    rec->enroll_until = UINT32_MAX;
    rec->state = MOAT_SLOT_ENROLLING;
    moat_slot_rec_commit(rec);
    for (uint32_t i = 0; i < moat_session_table_size(r.e->sessions); i++) {
        s = moat_session_at(r.e->sessions, i);
        if (!s->key.tag)
            continue;
        s->seen += 1000000; /* would never be idle */
        s->serial += 7;
        s->flags |= MOAT_SES_F_HALF_OPEN; /* of UDP */
    }
    rig_destroy(&r);

    rig_create(&r, path);
    ck_assert_uint_eq(r.e->recovered_slots, 2); /* not the one whose settings cannot be */
    ck_assert_int_lt(moat_slot_find(r.e, rig_vnic[1]), 0);
    ck_assert_uint_eq(r.e->map->slots[moat_slot_find(r.e, rig_vnic[0])].pickup_until, 0);
    ck_assert(moat_slot_info(r.e, (uint32_t)moat_slot_find(r.e, rig_vnic[0]), &info));
    ck_assert_uint_eq(info.sessions, 2);
    ck_assert_uint_eq(info.half_open, 0);
    moat_engine_turn(r.e);
    ck_assert_int_eq(state_of(&r, 2), MOAT_SLOT_ACTIVE);
    /* Judged again by the next packet; and those without one age. */
    rig_publish(&r, 0,
                "policy \"t\" version 1\ntier main { allow from any to any service tcp 1 }\n"
                "default drop\n");
    ck_assert(!rig_push(&r, 0, MOAT_TO_VM, f, udp(f, 1, 0, 2000, 1000), &reason));
    rig_pass_time(&r, 120000);
    ck_assert(moat_slot_info(r.e, (uint32_t)moat_slot_find(r.e, rig_vnic[0]), &info));
    ck_assert_uint_eq(info.sessions, 0);
    rig_destroy(&r);
    unlink(path);
}
END_TEST

START_TEST(a_mapping_of_other_sizes_is_refused)
{
    char path[] = "/tmp/moat-test-XXXXXX", err[256] = "";
    struct moat_engine_conf conf = {.mapping = path, .n_slots = 4, .n_sessions = 4096};
    struct moat_engine *e;
    int fd = mkstemp(path);

    ck_assert_int_ge(fd, 0);
    e = moat_engine_create(&conf, err, sizeof err);
    ck_assert_ptr_nonnull(e);
    ck_assert_ptr_null(moat_engine_create(&conf, err, sizeof err)); /* locked */
    ck_assert(strstr(err, "in use"));
    moat_engine_destroy(e);
    conf.n_sessions = 8192;
    ck_assert_ptr_null(moat_engine_create(&conf, err, sizeof err));
    ck_assert(strstr(err, "same sizes"));
    conf.n_sessions = 4096;
    ck_assert_int_eq(pwrite(fd, "garbage", 7, 0), 7);
    ck_assert_ptr_null(moat_engine_create(&conf, err, sizeof err));
    ck_assert(strstr(err, "not a Moat mapping"));
    close(fd);
    unlink(path);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("slot");
    TCase *tc = tcase_create("life");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, ports_are_born_blocked);
    tcase_add_test(tc, a_slot_without_policy_does_what_its_setting_says);
    tcase_add_test(tc, a_port_plugged_again_is_blocked_until_claimed);
    tcase_add_test(tc, refuses_what_it_must);
    tcase_add_test(tc, leaving_freezes_and_waits_for_the_hand_over);
    tcase_add_test(tc, the_wait_is_bounded_and_never_without_a_migration);
    tcase_add_test(tc, an_arriving_vm_is_held_until_opened);
    tcase_add_test(tc, a_decision_made_before_the_claim_counts);
    tcase_add_test(tc, void_sessions_do_not_count);
    tcase_add_test(tc, a_release_ends_the_wait);
    tcase_add_test(tc, a_hold_ends);
    tcase_add_test(tc, slots_rulesets_and_sessions_survive);
    tcase_add_test(tc, what_is_recovered_is_not_believed_blindly);
    tcase_add_test(tc, a_mapping_of_other_sizes_is_refused);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
