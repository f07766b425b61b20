/* SPDX-License-Identifier: Apache-2.0 */

/* The client against fake_engine, and against a server that answers nonsense. */

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ctl_client.h"
#include "moat/ruleset.h"

static const char *fake;
static char dir[64], ctl_path[96], cmd_path[96];
static pid_t pid;

static void wait_for_socket(const char *path)
{
    for (int i = 0; i < 200 && access(path, F_OK); i++)
        usleep(10000);
    usleep(20000);
}

static void setup(void)
{
    strcpy(dir, "/tmp/moat-ctl.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(ctl_path, sizeof ctl_path, "%s/ctl", dir);
    snprintf(cmd_path, sizeof cmd_path, "%s/cmd", dir);
    pid = fork();
    if (!pid) {
        execl(fake, fake, ctl_path, cmd_path, (char *)NULL);
        _exit(127);
    }
    wait_for_socket(cmd_path);
}

static void teardown(void)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    unlink(ctl_path);
    unlink(cmd_path);
    rmdir(dir);
}

static void say(const char *words)
{
    char command[300];

    snprintf(command, sizeof command, "%s -c %s %s", fake, cmd_path, words);
    ck_assert_int_eq(system(command), 0);
}

static struct moat_ctl *open_it(void)
{
    char why[200] = "";
    struct moat_ctl *c;

    ck_assert_msg(!moat_ctl_open(ctl_path, 1000, &c, why, sizeof why), "%s", why);
    return c;
}

static void claim(struct moat_ctl *c, const char *vnic, uint8_t state)
{
    struct moat_slot_conf conf = {.state = state, .epoch = 1};

    strcpy(conf.vnic, vnic);
    snprintf(conf.path, sizeof conf.path, "/p/%s", vnic);
    moat_settings_init(&conf.settings);
    ck_assert_int_eq(moat_ctl_claim(c, &conf), 0);
}

START_TEST(hello)
{
    struct moat_ctl *c = open_it();

    ck_assert_str_eq(moat_ctl_hello(c)->engine, "fake");
    ck_assert_int_eq(moat_ctl_hello_again(c), 0);
    moat_ctl_close(c);
    moat_ctl_close(NULL);
    char why[200] = "";
    ck_assert_int_eq(moat_ctl_open("/nowhere/ctl", 100, &c, why, sizeof why), -ENOENT);
    ck_assert_ptr_null(c);
    ck_assert(why[0]);
}
END_TEST

START_TEST(slots_and_refusals)
{
    struct moat_ctl *c = open_it();
    struct moat_slot_info *slots;
    char name[80];
    size_t n;

    ck_assert_int_eq(moat_ctl_slots(c, &slots, &n), 0);
    ck_assert_uint_eq(n, 0);
    for (int i = 0; i < 20; i++) { /* more than one page */
        snprintf(name, sizeof name, "v%d", i);
        claim(c, name, MOAT_SLOT_BLOCKED);
    }
    ck_assert_int_eq(moat_ctl_slots(c, &slots, &n), 0);
    ck_assert_uint_eq(n, 20);
    ck_assert_str_eq(slots[19].conf.vnic, "v19");
    free(slots);
    ck_assert_int_eq(moat_ctl_release(c, "nobody"), -ENOENT);
    ck_assert_ptr_nonnull(strstr(moat_ctl_error(c), "no such vNIC"));
    ck_assert(!moat_ctl_is_dead(c)); /* a refusal is an answer */
    memset(name, 'x', 70);
    name[70] = 0;
    ck_assert_int_eq(moat_ctl_release(c, name), -ENAMETOOLONG);
    ck_assert_int_eq(moat_ctl_release(c, "v3"), 0);
    uint64_t counters[MOAT_N_COUNTERS];
    ck_assert_int_eq(moat_ctl_counters(c, "v4", counters), 0);
    moat_ctl_close(c);
}
END_TEST

START_TEST(rulesets)
{
    struct moat_ctl *c = open_it();
    struct moat_ruleset_head *h = calloc(1, 5000);
    void *back;
    size_t len;

    claim(c, "v", MOAT_SLOT_BLOCKED);
    ck_assert_int_eq(moat_ctl_ruleset_get(c, "v", &back, &len), -ENOENT);
    h->generation = 7;
    ck_assert_int_eq(moat_ctl_ruleset_put(c, "v", h, 5000), 0);
    ck_assert_int_eq(moat_ctl_ruleset_get(c, "v", &back, &len), 0);
    ck_assert_uint_eq(len, 5000);
    ck_assert_mem_eq(back, h, 5000);
    free(back);
    ck_assert_int_eq(moat_ctl_ruleset_put(c, "v", h, MOAT_RULESET_VNIC_MAX + 1), -EMSGSIZE);
    ck_assert_int_eq(moat_ctl_ruleset_put(c, "v", h, 10), -EINVAL); /* refused by the engine */
    free(h);
    moat_ctl_close(c);
}
END_TEST

START_TEST(sessions)
{
    struct moat_ctl *c = open_it();
    struct moat_ctl_import_reply sum;
    struct moat_ctl_page page;
    struct moat_ses_rec rec;
    uint8_t *all = malloc(2000 * MOAT_SES_FRAME_MAX);
    size_t len = 0;
    uint32_t n = 0;
    int rc;

    claim(c, "a", MOAT_SLOT_ACTIVE);
    claim(c, "b", MOAT_SLOT_ARRIVING);
    say("sessions a 1500");
    moat_ctl_page_init(&page, "a", 0);
    while ((rc = moat_ctl_sessions(c, &page)) > 0) {
        const uint8_t *p = page.frames;
        size_t left = page.left;
        memcpy(all + len, p, left);
        len += left;
        while (moat_ctl_frame_next(&p, &left, &rec)) {
            ck_assert_uint_eq(rec.lport, 5432);
            n++;
        }
        ck_assert_uint_eq(left, 0);
    }
    ck_assert_int_eq(rc, 0);
    ck_assert_uint_eq(n, 1500);
    ck_assert_int_eq(moat_ctl_import(c, "b", true, all, len, &sum), 0); /* several requests */
    ck_assert_uint_eq(sum.accepted, 1500);
    ck_assert_int_eq(moat_ctl_import(c, "a", true, all, len, &sum), -EINVAL); /* not arriving */
    ck_assert_int_eq(moat_ctl_import(c, "b", true, all, 50, &sum), -EBADMSG);
    page = (struct moat_ctl_page){0};
    moat_ctl_page_init(&page, "nobody", 0);
    ck_assert_int_eq(moat_ctl_sessions(c, &page), -ENOENT);
    free(all);
    moat_ctl_close(c);
}
END_TEST

START_TEST(events)
{
    struct moat_ctl *sub = open_it();
    struct moat_event ev;

    ck_assert_int_eq(moat_ctl_subscribe(sub), 0);
    ck_assert_int_eq(moat_ctl_next_event(sub, &ev), 0);
    say("port /p/x");
    struct pollfd p = {.fd = moat_ctl_fd(sub), .events = POLLIN};
    ck_assert_int_eq(poll(&p, 1, 2000), 1);
    ck_assert_int_eq(moat_ctl_next_event(sub, &ev), 1);
    ck_assert_uint_eq(ev.type, MOAT_EV_PORT);
    ck_assert_str_eq(ev.path, "/p/x");
    ck_assert_int_eq(moat_ctl_release(sub, "v"), -EBUSY); /* for events only */
    kill(pid, SIGKILL);
    ck_assert_int_eq(poll(&p, 1, 2000), 1);
    ck_assert_int_lt(moat_ctl_next_event(sub, &ev), 0);
    ck_assert(moat_ctl_is_dead(sub));
    moat_ctl_close(sub);
}
END_TEST

/* --- another engine --------------------------------------------------------------- */

static struct moat_ctl *connect_it(void)
{
    char why[200] = "";
    struct moat_ctl *c;

    ck_assert_msg(!moat_ctl_connect(ctl_path, 1000, &c, why, sizeof why), "%s", why);
    return c;
}

START_TEST(replace)
{
    struct moat_ctl *c = connect_it(), *other = open_it();
    struct moat_slot_info *slots;
    struct moat_ctl_replaced r;
    char name[MOAT_FILE_MAX + 1];
    size_t n;

    claim(other, "v", MOAT_SLOT_ACTIVE);
    ck_assert_uint_eq(moat_ctl_hello(other)->replacements, 0);
    ck_assert_int_eq(moat_ctl_replaced(c, 1000, &r), -EINVAL); /* nobody asked */
    memset(name, 'x', sizeof name);
    name[0] = '/';
    name[sizeof name - 1] = '\0';
    ck_assert_int_eq(moat_ctl_replace(c, name), -ENAMETOOLONG);
    ck_assert_int_eq(moat_ctl_replace(c, "/bad"), 0);
    ck_assert_int_eq(moat_ctl_replaced(c, 1000, &r), -ENOEXEC);
    ck_assert_str_eq(moat_ctl_error(c), "/bad: it is not a Moat engine");
    ck_assert(!moat_ctl_is_dead(c)); /* a refusal is an answer */
    ck_assert_int_eq(moat_ctl_replace(c, "/slow"), 0);
    ck_assert_int_eq(moat_ctl_replace(c, "/slow"), -EBUSY);
    ck_assert_int_eq(moat_ctl_hello_again(c), -EBUSY);
    ck_assert_int_eq(moat_ctl_replaced(c, 0, &r), 0);
    ck_assert_int_eq(moat_ctl_slots(other, &slots, &n), 0); /* the one before serves */
    free(slots);
    ck_assert(!moat_ctl_has_ended(other));
    say("replace");
    ck_assert_int_eq(moat_ctl_replaced(c, 1000, &r), 1);
    ck_assert_str_eq(r.engine, "fake1");
    ck_assert_uint_eq(r.prepare_ms, 12);
    ck_assert_uint_eq(r.gate_us, 34);
    ck_assert(moat_ctl_is_dead(c));
    ck_assert_int_eq(moat_ctl_replaced(c, 1000, &r), -ENOTCONN);
    moat_ctl_close(c);

    c = open_it(); /* it listens, and its connections of before have ended */
    ck_assert(moat_ctl_has_ended(other));
    ck_assert(!moat_ctl_has_ended(c));
    ck_assert(!moat_ctl_is_dead(other));
    ck_assert_int_lt(moat_ctl_slots(other, &slots, &n), 0);
    ck_assert(moat_ctl_is_dead(other));
    ck_assert_str_eq(moat_ctl_hello(c)->engine, "fake1");
    ck_assert_uint_eq(moat_ctl_hello(c)->replacements, 1);
    ck_assert_int_eq(moat_ctl_slots(c, &slots, &n), 0);
    ck_assert_uint_eq(n, 1);
    free(slots);
    moat_ctl_close(other);
    moat_ctl_close(c);
}
END_TEST

START_TEST(lost_while_replacing)
{
    struct moat_ctl *c = connect_it();
    struct moat_ctl_replaced r;

    ck_assert_int_eq(moat_ctl_replace(c, "/slow"), 0);
    ck_assert_int_eq(moat_ctl_replaced(c, 0, &r), 0);
    kill(pid, SIGKILL);
    ck_assert_int_eq(moat_ctl_replaced(c, 1000, &r), -ECONNRESET);
    ck_assert(moat_ctl_is_dead(c));
    moat_ctl_close(c);
    ck_assert_int_eq(moat_ctl_connect(ctl_path, 1000, &c, NULL, 0), -ECONNREFUSED);
    ck_assert_ptr_null(c);
}
END_TEST

/* What a program does that lost its connection and has not noticed. */
START_TEST(no_connection)
{
    uint64_t counters[MOAT_N_COUNTERS];
    struct moat_ctl_replaced r;
    struct moat_ctl_state st = {.state = MOAT_SLOT_ACTIVE};
    struct moat_event ev;
    void *blob;
    size_t n;

    ck_assert(moat_ctl_is_dead(NULL) && moat_ctl_has_ended(NULL));
    ck_assert_int_eq(moat_ctl_release(NULL, "v"), -ENOTCONN);
    ck_assert_int_eq(moat_ctl_set_state(NULL, &st), -ENOTCONN);
    ck_assert_int_eq(moat_ctl_counters(NULL, "v", counters), -ENOTCONN);
    ck_assert_int_eq(moat_ctl_ruleset_put(NULL, "v", "x", 1), -ENOTCONN);
    ck_assert_int_eq(moat_ctl_ruleset_get(NULL, "v", &blob, &n), -ENOTCONN);
    ck_assert_int_eq(moat_ctl_subscribe(NULL), -ENOTCONN);
    ck_assert_int_eq(moat_ctl_next_event(NULL, &ev), -ENOTCONN);
    ck_assert_int_eq(moat_ctl_replace(NULL, ""), -ENOTCONN);
    ck_assert_int_eq(moat_ctl_replaced(NULL, 0, &r), -ENOTCONN);
    ck_assert_str_eq(moat_ctl_error(NULL), "not connected");
}
END_TEST

/* --- a server that lies ----------------------------------------------------------- */

enum lie { SILENCE, SHORT, LONG, BAD_LEN, BAD_XID, BAD_TYPE, BAD_VERSION, HANG_UP, BAD_COUNT,
           NO_PROGRESS, N_LIES };

static void liar(int fd, enum lie lie)
{
    static uint8_t buf[MOAT_CTL_MAX];
    struct moat_ctl_head *h = (void *)buf;
    struct moat_ctl_list_reply *lr = (void *)(h + 1);
    struct moat_ctl_hello *hi = (void *)(h + 1);
    size_t n;

    while (recv(fd, buf, sizeof buf, 0) > 0) {
        h->len = sizeof *hi;
        n = sizeof *h + sizeof *hi;
        if (h->type == MOAT_CTL_HELLO) {
            memset(hi, 0, sizeof *hi);
            hi->version = MOAT_CTL_VERSION;
        } else {
            memset(lr, 0, 4096);
            h->len = sizeof *lr;
            n = sizeof *h + sizeof *lr;
            if (lie == SILENCE)
                continue;
            if (lie == HANG_UP)
                _exit(0);
            if (lie == SHORT)
                n = 7;
            if (lie == LONG)
                n += 4;
            if (lie == BAD_LEN)
                h->len = 3;
            if (lie == BAD_XID)
                h->xid++;
            if (lie == BAD_TYPE)
                h->type = MOAT_CTL_CLAIM;
            if (lie == BAD_VERSION)
                h->version = 99;
            if (lie == BAD_COUNT)
                lr->n = UINT32_MAX / 2;
            if (lie == NO_PROGRESS) { /* a list without an end */
                lr->n = 1;
                lr->next = 1;
                h->len += sizeof(struct moat_slot_info);
                n += sizeof(struct moat_slot_info);
            }
        }
        h->type |= MOAT_CTL_REPLY;
        h->status = 0;
        send(fd, buf, n, MSG_NOSIGNAL);
    }
    _exit(0);
}

START_TEST(lies)
{
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    struct moat_slot_info *slots;
    struct moat_ctl *c;
    char path[96];
    size_t n;

    snprintf(path, sizeof path, "%s/liar", dir);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    strcpy(sun.sun_path, path);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&sun, sizeof sun), 0);
    listen(fd, 1);
    pid_t child = fork();
    if (!child)
        liar(accept(fd, NULL, NULL), (enum lie)_i);
    ck_assert_int_eq(moat_ctl_open(path, 300, &c, NULL, 0), 0);
    int rc = moat_ctl_slots(c, &slots, &n);
    ck_assert_int_lt(rc, 0);
    ck_assert((rc == -EPROTONOSUPPORT) == (_i == BAD_VERSION));
    ck_assert_ptr_null(slots);
    ck_assert(moat_ctl_is_dead(c));
    ck_assert_int_eq(moat_ctl_slots(c, &slots, &n), -ENOTCONN);
    moat_ctl_close(c);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    close(fd);
    unlink(path);
}
END_TEST

/* --- traced packets ----------------------------------------------------------------- */

enum traced_lie { T_NONE, T_CUT, T_LONG, T_CAP_LEN, T_TYPE, T_REFUSED, N_TRACED_LIES };

/* Answers HELLO; checks what TRACE brings; then two packets, the second as `lie` says. */
static void tracer(int fd, enum traced_lie lie)
{
    static uint8_t buf[MOAT_CTL_MAX];
    struct moat_ctl_head *h = (void *)buf;
    const struct moat_ctl_trace *ask = (void *)(h + 1);
    const struct moat_trace_insn *insns = (void *)(ask + 1);
    struct moat_ctl_hello *hi = (void *)(h + 1);
    struct moat_traced *t = (void *)(h + 1);

    while (recv(fd, buf, sizeof buf, 0) > 0) {
        bool is_trace = h->type == MOAT_CTL_TRACE;

        if (is_trace && (ask->n_insns != 2 || insns[1].k != 77 || ask->snaplen != 9 ||
                         h->len != sizeof *ask + 2 * sizeof *insns))
            _exit(1);
        h->type |= MOAT_CTL_REPLY;
        h->len = is_trace ? 0 : sizeof *hi;
        h->status = is_trace && lie == T_REFUSED ? -EUSERS : 0;
        if (!is_trace) {
            memset(hi, 0, sizeof *hi);
            hi->version = MOAT_CTL_VERSION;
        }
        send(fd, buf, sizeof *h + h->len, MSG_NOSIGNAL);
        if (!is_trace || lie == T_REFUSED)
            continue;
        for (uint64_t i = 1; i <= 2; i++) {
            *h = (struct moat_ctl_head){.type = MOAT_CTL_TRACED, .version = MOAT_CTL_VERSION};
            memset(t, 0, sizeof *t);
            memset(t->vnic, 'v', sizeof t->vnic);
            t->seq = i;
            t->cap_len = 5;
            h->len = sizeof *t + 5;
            memcpy(t + 1, "frame", 5);
            if (i == 2 && lie == T_CUT)
                h->len = sizeof *t - 1;
            if (i == 2 && lie == T_LONG)
                h->len++;
            if (i == 2 && lie == T_CAP_LEN)
                t->cap_len = UINT32_MAX;
            if (i == 2 && lie == T_TYPE)
                h->type = MOAT_CTL_EVENT;
            send(fd, buf, sizeof *h + h->len, MSG_NOSIGNAL);
        }
    }
    _exit(0);
}

static int next_traced(struct moat_ctl *c, struct moat_traced *t, const uint8_t **data)
{
    struct pollfd p = {.fd = moat_ctl_fd(c), .events = POLLIN};

    ck_assert_int_eq(poll(&p, 1, 2000), 1);
    return moat_ctl_next_traced(c, t, data);
}

START_TEST(traced)
{
    static const struct moat_trace_insn insns[2] = {{0x06, 0, 0, 76}, {0x06, 0, 0, 77}};
    struct moat_ctl_trace ask = {.n_insns = 2, .snaplen = 9};
    struct sockaddr_un sun = {.sun_family = AF_UNIX};
    const uint8_t *data;
    struct moat_traced t;
    struct moat_ctl *c;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);

    snprintf(sun.sun_path, sizeof sun.sun_path, "%s/tracer", dir);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&sun, sizeof sun), 0);
    listen(fd, 1);
    pid_t child = fork();
    if (!child)
        tracer(accept(fd, NULL, NULL), (enum traced_lie)_i);
    ck_assert_int_eq(moat_ctl_open(sun.sun_path, 300, &c, NULL, 0), 0);
    ask.n_insns = MOAT_TRACE_INSNS_MAX + 1;
    ck_assert_int_eq(moat_ctl_trace(c, &ask, insns), -E2BIG);
    ask.n_insns = 2;
    if (_i == T_REFUSED) {
        ck_assert_int_eq(moat_ctl_trace(c, &ask, insns), -EUSERS);
        ck_assert_int_eq(moat_ctl_hello_again(c), 0); /* still for requests */
    } else {
        ck_assert_int_eq(moat_ctl_trace(c, &ask, insns), 0);
        ck_assert_int_eq(moat_ctl_release(c, "v"), -EBUSY); /* for packets only */
        ck_assert_int_eq(next_traced(c, &t, &data), 1);
        ck_assert_uint_eq(t.seq, 1);
        ck_assert_uint_eq(strlen(t.vnic), sizeof t.vnic - 1);
        ck_assert_mem_eq(data, "frame", 5);
        ck_assert_int_eq(next_traced(c, &t, &data), _i == T_NONE ? 1 : -EPROTO);
        ck_assert(moat_ctl_is_dead(c) == (_i != T_NONE));
        ck_assert_int_eq(moat_ctl_next_traced(c, &t, &data), _i == T_NONE ? 0 : -ENOTCONN);
    }
    moat_ctl_close(c);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    close(fd);
    unlink(sun.sun_path);
}
END_TEST

int main(int argc, char *argv[])
{
    if (argc != 2) {
        fprintf(stderr, "usage: test_ctl_client FAKE_ENGINE\n");
        return 2;
    }
    fake = argv[1];
    Suite *s = suite_create("ctl_client");
    TCase *t = tcase_create("client");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, hello);
    tcase_add_test(t, slots_and_refusals);
    tcase_add_test(t, rulesets);
    tcase_add_test(t, sessions);
    tcase_add_test(t, events);
    tcase_add_test(t, replace);
    tcase_add_test(t, lost_while_replacing);
    tcase_add_test(t, no_connection);
    tcase_add_loop_test(t, lies, 0, N_LIES);
    tcase_add_loop_test(t, traced, 0, N_TRACED_LIES);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
