/* SPDX-License-Identifier: Apache-2.0 */

/* The control socket with a real filter core behind it: every message as it should be,
 * cut off at each length, with values out of range, and as noise.  What is refused must
 * change nothing.  Client and server take turns in one thread. */

#include "datapath/ctl.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "datapath/engine.h"
#include "datapath/slot.h"
#include "moat/session.h"
#include "tests/lib/blob.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
#define BODY_MAX (MOAT_CTL_MAX - sizeof(struct moat_ctl_head))
#define VNIC "vnic-1"
#define PATH "/run/vm1.sock"

static char dir[64], sock[MOAT_PATH_MAX];
static struct moat_engine *engine;
static struct moat_ctl_server *ctl;
static unsigned n_logged;
static int client = -1;
static uint32_t xid;
static uint64_t clock_ms = 5000000;

static struct {
    struct moat_ctl_head head;
    _Alignas(8) uint8_t body[BODY_MAX + 1];
    int fd;
} reply;

static uint64_t now_ms(void)
{
    return clock_ms;
}

static void count_log(const char *text)
{
    ck_assert_ptr_nonnull(text);
    n_logged++;
}

/* --- a client --- */

static int connect_client(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    snprintf(a.sun_path, sizeof a.sun_path, "%s", sock);
    ck_assert_int_eq(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    moat_ctl_run_once(ctl, 0);
    return fd;
}

static int send_raw(int to, const void *data, size_t len, const int *fds, unsigned n_fds)
{
    struct iovec iov = {(void *)(uintptr_t)data, len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    union {
        char buf[CMSG_SPACE(16 * sizeof(int))];
        struct cmsghdr align;
    } control;

    if (n_fds) {
        memset(&control, 0, sizeof control);
        msg.msg_control = control.buf;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *cm = CMSG_FIRSTHDR(&msg);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(cm), fds, n_fds * sizeof(int));
    }
    return sendmsg(to, &msg, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* 1: a message is in `reply`.  0: none.  -1: the server hung up. */
static int receive(int from)
{
    struct iovec iov[2] = {{&reply.head, sizeof reply.head}, {reply.body, sizeof reply.body}};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {.msg_iov = iov,
                         .msg_iovlen = 2,
                         .msg_control = control.buf,
                         .msg_controllen = sizeof control.buf};
    ssize_t n = recvmsg(from, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    reply.fd = -1;
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n <= 0)
        return -1;
    ck_assert_int_ge(n, (ssize_t)sizeof reply.head);
    ck_assert_uint_eq(reply.head.len, (size_t)n - sizeof reply.head);
    if (reply.head.type != (MOAT_CTL_REPLACE | MOAT_CTL_REPLY)) /* has its request's */
        ck_assert_uint_eq(reply.head.version, MOAT_CTL_VERSION);
    if (CMSG_FIRSTHDR(&msg))
        memcpy(&reply.fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof reply.fd);
    reply.body[reply.head.len] = 0;
    return 1;
}

/* The answer to whatever was sent: it comes at once or never. */
static int turn_and_receive(int from)
{
    moat_ctl_run_once(ctl, 0);
    return receive(from);
}

static int ask_fds(unsigned type, const void *body, size_t len, const int *fds, unsigned n_fds)
{
    static _Alignas(8) uint8_t buf[MOAT_CTL_MAX + 8];
    struct moat_ctl_head head = {
        .type = (uint16_t)type, .version = MOAT_CTL_VERSION, .xid = ++xid, .len = (uint32_t)len};

    memcpy(buf, &head, sizeof head);
    if (len)
        memcpy(buf + sizeof head, body, len);
    ck_assert_int_eq(send_raw(client, buf, sizeof head + len, fds, n_fds), 0);
    ck_assert_int_eq(turn_and_receive(client), 1);
    ck_assert_uint_eq(reply.head.type, type | MOAT_CTL_REPLY);
    ck_assert_uint_eq(reply.head.xid, xid);
    if (reply.head.status)
        ck_assert_uint_gt(reply.head.len, 3); /* words */
    return reply.head.status;
}

static int ask(unsigned type, const void *body, size_t len)
{
    return ask_fds(type, body, len, NULL, 0);
}

static int hello(void)
{
    uint32_t version = MOAT_CTL_VERSION;

    return ask(MOAT_CTL_HELLO, &version, sizeof version);
}

static const struct moat_ctl_vnic *vnic(const char *name)
{
    static struct moat_ctl_vnic v;

    memset(&v, 0, sizeof v);
    snprintf(v.vnic, sizeof v.vnic, "%s", name);
    return &v;
}

static int ask_vnic(unsigned type, const char *name)
{
    return ask(type, vnic(name), sizeof(struct moat_ctl_vnic));
}

static struct moat_slot_conf conf_of(const char *name, const char *path, unsigned state)
{
    struct moat_slot_conf c = {
        .mac = {2, 0, 0, 0, 0, 1}, .n_addrs = 1, .state = (uint8_t)state, .epoch = 1};

    snprintf(c.vnic, sizeof c.vnic, "%s", name);
    snprintf(c.vm, sizeof c.vm, "vm");
    snprintf(c.network, sizeof c.network, "net");
    snprintf(c.path, sizeof c.path, "%s", path);
    c.addrs[0] = (struct moat_addr){.family = 4, .plen = 32, .addr = {10, 0, 0, 1}};
    moat_settings_init(&c.settings);
    return c;
}

static int claim(const char *name, const char *path, unsigned state)
{
    struct moat_slot_conf c = conf_of(name, path, state);

    return ask(MOAT_CTL_CLAIM, &c, sizeof c);
}

static struct moat_ctl_state state_of(unsigned state)
{
    struct moat_ctl_state s = {.vnic = VNIC, .state = (uint8_t)state};

    return s;
}

static int memfd(const void *blob, size_t len, int seals)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    ck_assert_int_ge(fd, 0);
    if (blob)
        ck_assert_int_eq(write(fd, blob, len), (ssize_t)len);
    else
        ck_assert_int_eq(ftruncate(fd, (off_t)len), 0);
    ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static uint8_t *make_blob(uint64_t generation, size_t *len)
{
    struct blob *b = blob_create();
    uint8_t *out;

    blob_generation(b, generation);
    blob_rule(b, MOAT_ALLOW, "web")->dport_hi = 80;
    blob_rule(b, MOAT_DROP, "rest");
    out = blob_emit(b, len);
    blob_destroy(b);
    return out;
}

/* Sends a ruleset in a descriptor, which it closes. */
static int put(const char *name, int fd)
{
    int rc = ask_fds(MOAT_CTL_RULESET, vnic(name), sizeof(struct moat_ctl_vnic), &fd, 1);

    close(fd);
    return rc;
}

static int publish(uint64_t generation)
{
    size_t len;
    uint8_t *blob = make_blob(generation, &len);
    int rc = put(VNIC, memfd(blob, len, SEALS));

    free(blob);
    return rc;
}

static unsigned open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    unsigned n = 0;

    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* Everything that a refused request must not touch. */
struct picture {
    struct moat_slot_info slots[8];
    struct moat_port_info ports[4];
    uint32_t sessions;
};

static void take_picture(struct picture *p)
{
    memset(p, 0, sizeof *p);
    for (uint32_t i = 0; i < 8; i++)
        moat_slot_info(engine, i, &p->slots[i]);
    for (uint32_t i = 0; i < 4; i++)
        moat_port_info(engine, i, &p->ports[i]);
    p->sessions = moat_session_table_used(engine->sessions);
}

static void expect_same(const struct picture *before)
{
    struct picture after;

    take_picture(&after);
    ck_assert_mem_eq(&after, before, sizeof after);
}

/* --- fixture --- */

static void start_server(uid_t uid)
{
    struct moat_ctl_conf conf = {.engine = engine, .path = sock, .uid = uid, .log = count_log};
    char err[256] = "";

    ctl = moat_ctl_create(&conf, err, sizeof err);
    ck_assert_msg(ctl != NULL, "%s", err);
}

static void setup(void)
{
    static const uint64_t seed[4] = {1, 2, 3, 4};
    struct moat_engine_conf conf = {
        .n_slots = 8, .n_sessions = 1024, .now_ms = now_ms, .seed = seed};
    char err[256] = "";

    snprintf(dir, sizeof dir, "/tmp/moat-ctl-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(sock, sizeof sock, "%s/moat.ctl", dir);
    engine = moat_engine_create(&conf, err, sizeof err);
    ck_assert_msg(engine != NULL, "%s", err);
    ck_assert_ptr_nonnull(moat_port_register(engine, PATH));
    n_logged = 0;
    start_server(getuid());
    client = connect_client();
    ck_assert_int_eq(hello(), 0);
}

static void teardown(void)
{
    close(client);
    moat_ctl_destroy(ctl);
    moat_engine_destroy(engine);
    ck_assert_int_eq(access(sock, F_OK), -1);
    rmdir(dir);
}

/* --- as it should be --- */

START_TEST(hello_tells_who_it_is)
{
    const struct moat_ctl_hello *h = (void *)reply.body;
    uint32_t version = MOAT_CTL_VERSION + 1;

    ck_assert_int_eq(claim(VNIC, PATH, MOAT_SLOT_ACTIVE), 0);
    ck_assert_int_eq(hello(), 0);
    ck_assert_uint_eq(reply.head.len, sizeof *h);
    ck_assert_uint_eq(h->version, MOAT_CTL_VERSION);
    ck_assert_uint_eq(h->pid, (uint32_t)getpid());
    ck_assert_uint_eq(h->n_slots, 8);
    ck_assert_uint_eq(h->slots_used, 1);
    ck_assert_uint_eq(h->n_ports, 1);
    ck_assert_uint_eq(h->sessions_max, 1024);
    ck_assert_uint_eq(h->now_s, clock_ms / 1000);
    ck_assert_str_eq(h->engine, MOAT_VERSION);
    ck_assert_int_eq(ask(MOAT_CTL_HELLO, &version, sizeof version), -EPROTONOSUPPORT);
}
END_TEST

START_TEST(hello_comes_first)
{
    struct moat_ctl_list first = {0};

    close(client);
    client = connect_client();
    ck_assert_int_eq(ask(MOAT_CTL_SLOT_LIST, &first, sizeof first), -EPROTO);
    ck_assert_int_eq(hello(), 0);
    ck_assert_int_eq(ask(MOAT_CTL_SLOT_LIST, &first, sizeof first), 0);
}
END_TEST

START_TEST(life_of_a_slot)
{
    const struct moat_ctl_list_reply *list = (void *)reply.body;
    const struct moat_slot_info *info = (void *)(list + 1);
    const struct moat_port_info *port = (void *)(list + 1);
    struct moat_ctl_state state = state_of(MOAT_SLOT_BLOCKED);
    struct moat_ctl_list first = {0};
    uint8_t *blob, got[MOAT_RULESET_VNIC_MAX];
    size_t len;

    ck_assert_int_eq(claim(VNIC, PATH, MOAT_SLOT_ACTIVE), 0);
    ck_assert_int_eq(publish(7), 0);
    ck_assert_int_eq(ask(MOAT_CTL_SLOT_LIST, &first, sizeof first), 0);
    ck_assert_uint_eq(list->n, 1);
    ck_assert_uint_eq(list->next, 0);
    ck_assert_uint_eq(reply.head.len, sizeof *list + sizeof *info);
    ck_assert_str_eq(info->conf.vnic, VNIC);
    ck_assert_uint_eq(info->state, MOAT_SLOT_ACTIVE);
    ck_assert_uint_eq(info->generation, 7);
    ck_assert_uint_eq(info->n_rules, 2);
    ck_assert(info->has_port);

    ck_assert_int_eq(ask(MOAT_CTL_PORT_LIST, &first, sizeof first), 0);
    ck_assert_uint_eq(list->n, 1);
    ck_assert_uint_eq(reply.head.len, sizeof *list + sizeof *port);
    ck_assert_str_eq(port->path, PATH);
    ck_assert_str_eq(port->vnic, VNIC);

    ck_assert_int_eq(ask_vnic(MOAT_CTL_RULESET_GET, VNIC), 0);
    ck_assert_int_ge(reply.fd, 0);
    ck_assert_int_eq(fcntl(reply.fd, F_GET_SEALS) & SEALS, SEALS);
    blob = make_blob(7, &len);
    ck_assert_int_eq(pread(reply.fd, got, sizeof got, 0), (ssize_t)len);
    ck_assert_mem_eq(got, blob, len);
    free(blob);
    close(reply.fd);

    ck_assert_int_eq(ask_vnic(MOAT_CTL_COUNTERS, VNIC), 0);
    ck_assert_uint_eq(reply.head.len, MOAT_N_COUNTERS * sizeof(uint64_t));
    ck_assert_int_eq(ask(MOAT_CTL_RULE_HITS, &(struct moat_ctl_hits){.vnic = VNIC},
                         sizeof(struct moat_ctl_hits)),
                     0);
    ck_assert_uint_eq(list->n, 3); /* two rules and the default */
    ck_assert_int_eq(ask(MOAT_CTL_STATE, &state, sizeof state), 0);
    ck_assert_int_eq(ask_vnic(MOAT_CTL_HANDED_OVER, VNIC), 0);
    ck_assert_int_eq(ask_vnic(MOAT_CTL_FLUSH, VNIC), 0);
    ck_assert_int_eq(ask_vnic(MOAT_CTL_RELEASE, VNIC), 0);
    ck_assert_int_eq(ask(MOAT_CTL_SLOT_LIST, &first, sizeof first), 0);
    ck_assert_uint_eq(list->n, 0);
}
END_TEST

START_TEST(lists_go_on_where_they_stopped)
{
    const struct moat_ctl_list_reply *list = (void *)reply.body;
    struct moat_ctl_list ask_list = {0};
    const uint32_t n_ports = 1000;
    uint32_t seen = 0;

    for (uint32_t i = 1; i < n_ports; i++) {
        char path[64];

        snprintf(path, sizeof path, "/run/port-%u", i);
        ck_assert_ptr_nonnull(moat_port_register(engine, path));
    }
    do {
        ck_assert_int_eq(ask(MOAT_CTL_PORT_LIST, &ask_list, sizeof ask_list), 0);
        ck_assert_uint_eq(reply.head.len, sizeof *list + list->n * sizeof(struct moat_port_info));
        seen += list->n;
        ask_list.first = list->next;
    } while (ask_list.first);
    ck_assert_uint_eq(seen, n_ports);
    ask_list.first = UINT32_MAX;
    ck_assert_int_eq(ask(MOAT_CTL_PORT_LIST, &ask_list, sizeof ask_list), 0);
    ck_assert_int_eq(ask(MOAT_CTL_SLOT_LIST, &ask_list, sizeof ask_list), 0);
    ck_assert_uint_eq(list->n, 0);
}
END_TEST

/* One UDP session's frame. */
static size_t make_frame(uint8_t *out, uint16_t port)
{
    struct moat_ses_rec rec = {.family = 4,
                               .proto = 17,
                               .lport = port,
                               .rport = 53,
                               .local = {10, 0, 0, 1},
                               .remote = {10, 0, 0, 9},
                               .side = {{.state = 1}}};
    unsigned len = moat_ses_encode(&rec, out + 4);

    moat_put_be(out, XXH32(out + 4, len, MOAT_SES_MAGIC), 4);
    return 4 + len;
}

static int import(const char *name, uint32_t n, uint32_t same_policy, const void *frames,
                  size_t len)
{
    static _Alignas(8) uint8_t body[BODY_MAX];
    struct moat_ctl_import head = {.n = n, .same_policy = same_policy};

    snprintf(head.vnic, sizeof head.vnic, "%s", name);
    memcpy(body, &head, sizeof head);
    memcpy(body + sizeof head, frames, len);
    return ask(MOAT_CTL_IMPORT, body, sizeof head + len);
}

START_TEST(sessions_come_and_go)
{
    const struct moat_ctl_import_reply *done = (void *)reply.body;
    const struct moat_ctl_sessions_reply *page = (void *)reply.body;
    struct moat_ctl_sessions ask_sessions = {.vnic = VNIC};
    uint8_t frames[3 * MOAT_SES_FRAME_MAX];
    size_t len = 0;

    for (uint16_t i = 0; i < 3; i++)
        len += make_frame(frames + len, (uint16_t)(1000 + i));
    ck_assert_int_eq(claim(VNIC, PATH, MOAT_SLOT_ARRIVING), 0);
    ck_assert_int_eq(import(VNIC, 3, 1, frames, len), 0);
    ck_assert_uint_eq(done->accepted, 3);
    ck_assert_uint_eq(done->refused, 0);
    ck_assert_int_eq(ask(MOAT_CTL_SESSIONS, &ask_sessions, sizeof ask_sessions), 0);
    ck_assert_uint_eq(page->n, 3);
    ck_assert_str_eq(page->vnic, VNIC);
    memset(ask_sessions.vnic, 0, sizeof ask_sessions.vnic);
    ck_assert_int_eq(ask(MOAT_CTL_SESSIONS, &ask_sessions, sizeof ask_sessions), 0);
    ck_assert_uint_eq(page->n, 3);
    ask_sessions.cursor = UINT32_MAX;
    ck_assert_int_eq(ask(MOAT_CTL_SESSIONS, &ask_sessions, sizeof ask_sessions), 0);
    ck_assert_uint_eq(page->n, 0);

    frames[0] ^= 1; /* a bad checksum: that one is refused, the others are taken */
    ck_assert_int_eq(import(VNIC, 3, 0, frames, len), 0);
    ck_assert_uint_eq(done->accepted, 2);
    ck_assert_uint_eq(done->refused, 1);
}
END_TEST

/* --- refusals --- */

/* A slot that is active, with sessions behind it: what refusals must leave alone. */
static void make_scene(struct picture *p)
{
    uint8_t frame[MOAT_SES_FRAME_MAX];
    size_t len = make_frame(frame, 1000);
    struct moat_ctl_state active = state_of(MOAT_SLOT_BLOCKED);

    ck_assert_int_eq(claim(VNIC, PATH, MOAT_SLOT_ARRIVING), 0);
    ck_assert_int_eq(publish(3), 0);
    ck_assert_int_eq(import(VNIC, 1, 1, frame, len), 0);
    ck_assert_int_eq(ask(MOAT_CTL_STATE, &active, sizeof active), 0);
    take_picture(p);
}

/* A message of each type that would be accepted, but for its length. */
static size_t valid_body(unsigned type, void *out)
{
    static const uint32_t version = MOAT_CTL_VERSION;
    struct moat_slot_conf conf = conf_of("vnic-2", "/run/vm2.sock", MOAT_SLOT_ACTIVE);
    struct moat_ctl_state state = state_of(MOAT_SLOT_BLOCKED);
    struct moat_ctl_import imp = {.vnic = VNIC};
    struct moat_ctl_trace trace = {.which = MOAT_TRACE_PASSED};

    memset(out, 0, 1024);
    switch (type) {
    case MOAT_CTL_HELLO:
        memcpy(out, &version, sizeof version);
        return sizeof version;
    case MOAT_CTL_SLOT_LIST:
    case MOAT_CTL_PORT_LIST:
        return sizeof(struct moat_ctl_list);
    case MOAT_CTL_CLAIM:
        memcpy(out, &conf, sizeof conf);
        return sizeof conf;
    case MOAT_CTL_STATE:
        memcpy(out, &state, sizeof state);
        return sizeof state;
    case MOAT_CTL_SESSIONS:
        return sizeof(struct moat_ctl_sessions);
    case MOAT_CTL_IMPORT:
        memcpy(out, &imp, sizeof imp);
        return sizeof imp;
    case MOAT_CTL_RULE_HITS:
        memcpy(out, vnic(VNIC), sizeof(struct moat_ctl_vnic));
        return sizeof(struct moat_ctl_hits);
    case MOAT_CTL_SUBSCRIBE:
        return 0;
    case MOAT_CTL_TRACE:
        memcpy(out, &trace, sizeof trace);
        return sizeof trace;
    default:
        memcpy(out, vnic(VNIC), sizeof(struct moat_ctl_vnic));
        return sizeof(struct moat_ctl_vnic);
    }
}

START_TEST(every_length_but_the_right_one)
{
    uint8_t body[1024];
    struct picture before;

    make_scene(&before);
    for (unsigned type = 0; type <= MOAT_CTL_TRACED + 2; type++) {
        size_t len = valid_body(type, body);

        for (size_t n = 0; n < len; n++)
            ck_assert_int_lt(ask(type, body, n), 0);
        if (type != MOAT_CTL_IMPORT)
            ck_assert_int_lt(ask(type, body, len + 1), 0);
    }
    expect_same(&before);
}
END_TEST

START_TEST(heads_that_lie)
{
    struct {
        struct moat_ctl_head head;
        struct moat_ctl_vnic body;
    } m = {.body = {.vnic = VNIC}};
    static const struct moat_ctl_head lies[] = {
        {MOAT_CTL_FLUSH, MOAT_CTL_VERSION, 1, 0, 0},
        {MOAT_CTL_FLUSH, MOAT_CTL_VERSION, 1, sizeof m.body - 1, 0},
        {MOAT_CTL_FLUSH, MOAT_CTL_VERSION, 1, sizeof m.body + 1, 0},
        {MOAT_CTL_FLUSH, MOAT_CTL_VERSION, 1, UINT32_MAX, 0},
        {MOAT_CTL_FLUSH, MOAT_CTL_VERSION + 1, 1, sizeof m.body, 0},
        {MOAT_CTL_FLUSH, 0, 1, sizeof m.body, 0},
        {MOAT_CTL_FLUSH | MOAT_CTL_REPLY, MOAT_CTL_VERSION, 1, sizeof m.body, 0},
        {0, MOAT_CTL_VERSION, 1, sizeof m.body, 0},
        {MOAT_CTL_EVENT, MOAT_CTL_VERSION, 1, sizeof m.body, 0},
        {MOAT_CTL_TRACED, MOAT_CTL_VERSION, 1, sizeof m.body, 0},
        {UINT16_MAX, MOAT_CTL_VERSION, 1, sizeof m.body, 0},
    };
    struct picture before;

    make_scene(&before);
    for (unsigned i = 0; i < sizeof lies / sizeof *lies; i++) {
        m.head = lies[i];
        ck_assert_int_eq(send_raw(client, &m, sizeof m, NULL, 0), 0);
        ck_assert_int_eq(turn_and_receive(client), 1);
        ck_assert_int_lt(reply.head.status, 0);
    }
    for (size_t n = 1; n < sizeof m.head; n++) {
        ck_assert_int_eq(send_raw(client, &m, n, NULL, 0), 0);
        ck_assert_int_eq(turn_and_receive(client), 1);
        ck_assert_int_eq(reply.head.status, -EBADMSG);
    }
    expect_same(&before);
}
END_TEST

START_TEST(messages_beyond_the_maximum)
{
    static uint8_t big[MOAT_CTL_MAX + 100];
    struct moat_ctl_head head = {MOAT_CTL_IMPORT, MOAT_CTL_VERSION, 1, sizeof big - sizeof head, 0};

    memcpy(big, &head, sizeof head);
    ck_assert_int_eq(send_raw(client, big, sizeof big, NULL, 0), 0);
    ck_assert_int_eq(turn_and_receive(client), 1);
    ck_assert_int_eq(reply.head.status, -EMSGSIZE);
    ck_assert_int_eq(hello(), 0);
}
END_TEST

/* Each changes one thing of a claim that is good. */
#define BAD_CLAIMS(X)                                                                              \
    X(memset(c.vnic, 0, sizeof c.vnic))                                                            \
    X(memset(c.vnic, 'a', sizeof c.vnic))                                                          \
    X(memset(c.vm, 'a', sizeof c.vm))                                                              \
    X(memset(c.network, 'a', sizeof c.network))                                                    \
    X(memset(c.path, 'a', sizeof c.path))                                                          \
    X(memset(c.path, 0, sizeof c.path))                                                            \
    X(c.vm[0] = '\n')                                                                              \
    X(c.vnic[1] = '\033')                                                                          \
    X(c.path[2] = 0x7f)                                                                            \
    X(c.n_addrs = MOAT_ADDRS_MAX + 1)                                                              \
    X(c.n_addrs = 255)                                                                             \
    X(c.addrs[0].family = 0)                                                                       \
    X(c.addrs[0].family = 5)                                                                       \
    X(c.addrs[0].plen = 33)                                                                        \
    X((c.addrs[0].family = 6, c.addrs[0].plen = 129))                                              \
    X(c.n_addrs = 2)                                                                               \
    X(c.state = MOAT_SLOT_FREE)                                                                    \
    X(c.state = MOAT_SLOT_FROZEN)                                                                  \
    X(c.state = MOAT_SLOT_DEPARTED)                                                                \
    X(c.state = MOAT_N_SLOT_STATES)                                                                \
    X(c.state = 255)                                                                               \
    X(c.settings.on_missing_policy = MOAT_FAIL_PICKUP)                                             \
    X(c.settings.on_missing_state = 3)                                                             \
    X(c.settings.on_unprotected_host = 255)                                                        \
    X(c.settings.tcp_loose = 2)                                                                    \
    X(c.settings.spoof = 3)                                                                        \
    X(c.settings.vlan = 2)                                                                         \
    X(c.settings.ra_guard = 2)                                                                     \
    X(c.settings.dhcp_guard = 2)                                                                   \
    X((c.settings.n_ethertypes = 1, c.settings.ethertypes[0] = 0x86dd))                            \
    X(c.settings.enroll_s = MOAT_ENROLL_MAX + 1)                                                   \
    X(c.settings.n_ethertypes = MOAT_ETHERTYPES_MAX + 1)                                           \
    X(c.settings.timers[MOAT_T_ICMP] = MOAT_TIMER_MAX + 1)                                         \
    X(c.settings.transfer_sessions = 2)                                                            \
    X(c.settings.quarantine = 2)                                                                   \
    X(snprintf(c.path, sizeof c.path, PATH)) /* another vNIC's */

START_TEST(claims_out_of_range)
{
    struct picture before;

    make_scene(&before);
#define X(CHANGE)                                                                                  \
    {                                                                                              \
        struct moat_slot_conf c = conf_of("vnic-2", "/run/vm2.sock", MOAT_SLOT_ACTIVE);            \
                                                                                                   \
        CHANGE;                                                                                    \
        ck_assert_msg(ask(MOAT_CTL_CLAIM, &c, sizeof c) < 0, "%s was accepted", #CHANGE);          \
    }
    BAD_CLAIMS(X)
#undef X
    expect_same(&before);
    ck_assert_int_eq(claim("vnic-2", "/run/vm2.sock", MOAT_SLOT_ACTIVE), 0);
}
END_TEST

#define BAD_STATES(X)                                                                              \
    X(memset(s.vnic, 'a', sizeof s.vnic))                                                          \
    X(memset(s.vnic, 0, sizeof s.vnic))                                                            \
    X(memcpy(s.vnic, "nobody", 7))                                                                 \
    X(s.state = MOAT_SLOT_FREE)                                                                    \
    X(s.state = MOAT_N_SLOT_STATES)                                                                \
    X(s.state = 255)                                                                               \
    X(s.precopy = 2)                                                                               \
    X(s.wait_ms = UINT32_MAX)                                                                      \
    X(s.pickup_s = MOAT_PICKUP_MAX + 1)                                                            \
    X((s.state = MOAT_SLOT_ENROLLING, s.pickup_s = MOAT_ENROLL_MAX + 1))

START_TEST(states_out_of_range)
{
    struct picture before;

    make_scene(&before);
#define X(CHANGE)                                                                                  \
    {                                                                                              \
        struct moat_ctl_state s = state_of(MOAT_SLOT_ACTIVE);                                      \
                                                                                                   \
        CHANGE;                                                                                    \
        ck_assert_msg(ask(MOAT_CTL_STATE, &s, sizeof s) < 0, "%s was accepted", #CHANGE);          \
    }
    BAD_STATES(X)
#undef X
    expect_same(&before);
}
END_TEST

START_TEST(vnics_that_nobody_knows)
{
    static const unsigned types[] = {MOAT_CTL_RELEASE, MOAT_CTL_COUNTERS, MOAT_CTL_HANDED_OVER,
                                     MOAT_CTL_RULESET_GET, MOAT_CTL_FLUSH};
    struct moat_ctl_vnic endless;
    struct moat_ctl_hits hits = {.vnic = "nobody"};
    struct moat_ctl_sessions sessions = {.vnic = "nobody"};
    struct picture before;
    size_t len;
    uint8_t *blob = make_blob(1, &len), frame[MOAT_SES_FRAME_MAX];

    make_scene(&before);
    memset(&endless, 'a', sizeof endless);
    for (unsigned i = 0; i < sizeof types / sizeof *types; i++) {
        ck_assert_int_eq(ask_vnic(types[i], "nobody"), -ENOENT);
        ck_assert_int_eq(ask_vnic(types[i], ""), -EINVAL);
        ck_assert_int_eq(ask(types[i], &endless, sizeof endless), -EINVAL);
    }
    ck_assert_int_eq(ask(MOAT_CTL_RULE_HITS, &hits, sizeof hits), -ENOENT);
    ck_assert_int_eq(ask(MOAT_CTL_SESSIONS, &sessions, sizeof sessions), -ENOENT);
    memset(sessions.vnic, 'a', sizeof sessions.vnic);
    ck_assert_int_eq(ask(MOAT_CTL_SESSIONS, &sessions, sizeof sessions), -EINVAL);
    ck_assert_int_eq(put("nobody", memfd(blob, len, SEALS)), -ENOENT);
    ck_assert_int_lt(import("nobody", 1, 1, frame, make_frame(frame, 1)), 0);
    expect_same(&before);
    free(blob);
}
END_TEST

START_TEST(imports_out_of_range)
{
    uint8_t frame[2 * MOAT_SES_FRAME_MAX] = {0};
    size_t len = make_frame(frame, 1);
    struct picture before;

    make_scene(&before);
    ck_assert_int_lt(import(VNIC, 1, 1, frame, len), 0); /* it is not arriving */
    ck_assert_int_lt(import(VNIC, 1, 2, frame, len), 0);
    ck_assert_int_lt(import(VNIC, 2, 1, frame, len), 0);
    ck_assert_int_lt(import(VNIC, UINT32_MAX, 1, frame, len), 0);
    expect_same(&before);
}
END_TEST

START_TEST(rulesets_that_are_not)
{
    size_t len;
    uint8_t *blob = make_blob(9, &len);
    struct picture before;
    unsigned fds;
    int pipes[2], two[2];

    make_scene(&before);
    fds = open_fds();
    ck_assert_int_lt(put(VNIC, memfd(blob, len, 0)), 0);
    ck_assert_int_lt(put(VNIC, memfd(blob, len, F_SEAL_SHRINK | F_SEAL_GROW)), 0);
    ck_assert_int_lt(put(VNIC, memfd(blob, len, F_SEAL_WRITE | F_SEAL_GROW)), 0);
    ck_assert_int_lt(put(VNIC, memfd(blob, len, F_SEAL_SHRINK | F_SEAL_WRITE)), 0);
    ck_assert_int_lt(put(VNIC, memfd(NULL, 0, SEALS)), 0);
    ck_assert_int_lt(put(VNIC, memfd(NULL, MOAT_RULESET_VNIC_MAX, SEALS)), 0); /* zeroes */
    ck_assert_int_lt(put(VNIC, memfd(NULL, MOAT_RULESET_VNIC_MAX + 1, SEALS)), 0);
    ck_assert_int_lt(put(VNIC, memfd(NULL, (size_t)1 << 40, SEALS)), 0);
    ck_assert_int_lt(put(VNIC, open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), 0);
    ck_assert_int_lt(put(VNIC, open("/", O_RDONLY | O_CLOEXEC)), 0);
    for (size_t n = 1; n < len; n += 7)
        ck_assert_int_lt(put(VNIC, memfd(blob, n, SEALS)), 0);
    for (size_t i = 0; i < len; i += 3) {
        blob[i] ^= 0x40;
        /* reserved bytes of the head are covered by the checksum, too */
        ck_assert_int_lt(put(VNIC, memfd(blob, len, SEALS)), 0);
        blob[i] ^= 0x40;
    }
    ck_assert_int_eq(pipe(pipes), 0);
    ck_assert_int_lt(put(VNIC, pipes[0]), 0);
    close(pipes[1]);
    ck_assert_int_lt(ask_vnic(MOAT_CTL_RULESET, VNIC), 0); /* none at all */
    two[0] = memfd(blob, len, SEALS);
    two[1] = memfd(blob, len, SEALS);
    ck_assert_int_lt(ask_fds(MOAT_CTL_RULESET, vnic(VNIC), sizeof(struct moat_ctl_vnic), two, 2),
                     0);
    close(two[0]);
    close(two[1]);
    ck_assert_uint_eq(open_fds(), fds);
    expect_same(&before);
    ck_assert_int_eq(put(VNIC, memfd(blob, len, SEALS)), 0);
    ck_assert_uint_eq(open_fds(), fds);
    free(blob);
}
END_TEST

START_TEST(descriptors_that_nobody_asked_for)
{
    unsigned fds = open_fds();
    int some[12];

    for (unsigned i = 0; i < 12; i++)
        some[i] = client;
    for (unsigned n = 1; n <= 12; n++)
        ck_assert_int_lt(ask_fds(MOAT_CTL_HELLO, "\1\0\0\0", 4, some, n), 0);
    ck_assert_int_eq(hello(), 0);
    ck_assert_uint_eq(open_fds(), fds);
}
END_TEST

START_TEST(refusals_are_told)
{
    unsigned n_events = 0, logged = n_logged;
    struct picture before;

    make_scene(&before);
    ck_assert_int_eq(ask(MOAT_CTL_SUBSCRIBE, NULL, 0), 0);
    while (turn_and_receive(client) > 0)
        ; /* what the scene has left */
    for (unsigned i = 0; i < 100; i++) {
        struct moat_ctl_head head = {MOAT_CTL_FLUSH, MOAT_CTL_VERSION, i, 0, 0};

        ck_assert_int_eq(send_raw(client, &head, sizeof head, NULL, 0), 0);
        moat_ctl_run_once(ctl, 0);
        while (receive(client) > 0) {
            const struct moat_event *ev = (void *)reply.body;

            if (reply.head.type != MOAT_CTL_EVENT)
                continue;
            ck_assert_uint_eq(reply.head.len, sizeof *ev);
            ck_assert_uint_eq(ev->type, MOAT_EV_REFUSED);
            ck_assert_ptr_nonnull(strstr(ev->text, "flush"));
            n_events++;
        }
    }
    ck_assert_uint_ge(n_events, 1);
    ck_assert_uint_le(n_events, 20); /* ten a second */
    ck_assert_uint_eq(n_logged, logged + 1);
    expect_same(&before);
}
END_TEST

/* --- clients that do not behave --- */

START_TEST(a_client_that_does_not_read)
{
    struct moat_ctl_list first = {0};
    struct {
        struct moat_ctl_head head;
        struct moat_ctl_list body;
    } m = {.head = {MOAT_CTL_SLOT_LIST, MOAT_CTL_VERSION, 0, sizeof m.body, 0}};
    uint32_t sent = 0, got = 0;
    int lazy;

    ck_assert_int_eq(claim(VNIC, PATH, MOAT_SLOT_ACTIVE), 0);
    lazy = client;
    client = connect_client();
    ck_assert_int_eq(hello(), 0);
    for (unsigned i = 0; i < 5000; i++) {
        m.head.xid = sent;
        sent += !send_raw(lazy, &m, sizeof m, NULL, 0);
        moat_ctl_run_once(ctl, 0);
    }
    ck_assert_uint_gt(sent, 10);
    ck_assert_uint_lt(sent, 5000); /* it was not read any more */
    ck_assert_int_eq(ask(MOAT_CTL_SLOT_LIST, &first, sizeof first), 0);
    for (unsigned i = 0; i < 20000 && got < sent; i++) {
        if (receive(lazy) > 0) {
            ck_assert_uint_eq(reply.head.xid, got);
            got++;
        }
        moat_ctl_run_once(ctl, 0);
    }
    ck_assert_uint_eq(got, sent);
    close(lazy);
}
END_TEST

START_TEST(a_subscriber_that_does_not_read)
{
    struct moat_event ev = {.type = MOAT_EV_PACKET};
    uint64_t last = 0, gaps = 0, n = 0;

    ck_assert_int_eq(ask(MOAT_CTL_SUBSCRIBE, NULL, 0), 0);
    for (unsigned i = 0; i < 5000; i++) {
        moat_event_post(&engine->events, &ev, true);
        moat_ctl_run_once(ctl, 0);
    }
    while (receive(client) > 0) {
        const struct moat_event *got = (void *)reply.body;

        gaps += last && got->seq != last + 1;
        last = got->seq;
        n++;
    }
    ck_assert_uint_gt(n, 10);
    ck_assert_uint_lt(n, 5000);
    ck_assert_uint_eq(gaps, 0);
    moat_event_post(&engine->events, &ev, true);
    ck_assert_int_eq(turn_and_receive(client), 1);
    ck_assert_uint_gt(((struct moat_event *)(void *)reply.body)->seq, last + 1);
    ck_assert_int_eq(hello(), 0);
}
END_TEST

START_TEST(too_many_clients)
{
    int fds[MOAT_CTL_MAX_CLIENTS + 5];
    unsigned refused = 0;

    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS + 5; i++) {
        fds[i] = connect_client();
        refused += receive(fds[i]) < 0;
    }
    ck_assert_uint_eq(refused, 6); /* one is there from the start */
    ck_assert_int_eq(hello(), 0);
    for (unsigned i = 0; i < MOAT_CTL_MAX_CLIENTS + 5; i++)
        close(fds[i]);
    moat_ctl_run_once(ctl, 0);
    close(client);
    moat_ctl_run_once(ctl, 0);
    client = connect_client();
    ck_assert_int_eq(hello(), 0);
}
END_TEST

START_TEST(another_user)
{
    int fd;

    moat_ctl_destroy(ctl);
    start_server(getuid() + 1);
    fd = connect_client();
    ck_assert_int_eq(receive(fd), -1);
    close(fd);
}
END_TEST

START_TEST(the_socket_itself)
{
    struct moat_ctl_conf conf = {.engine = engine, .path = sock, .uid = getuid()};
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    char err[256], longer[200];
    struct stat st;
    int fd;

    ck_assert_int_eq(stat(sock, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0600);
    ck_assert_ptr_null(moat_ctl_create(&conf, err, sizeof err)); /* it is served */
    ck_assert_ptr_nonnull(strstr(err, "served"));

    moat_ctl_destroy(ctl); /* a dead process's */
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    snprintf(a.sun_path, sizeof a.sun_path, "%s", sock);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    close(fd);
    start_server(getuid());

    moat_ctl_destroy(ctl); /* somebody's file */
    fd = open(sock, O_CREAT | O_CLOEXEC | O_WRONLY, 0600);
    close(fd);
    ck_assert_ptr_null(moat_ctl_create(&conf, err, sizeof err));
    ck_assert_int_eq(unlink(sock), 0);

    memset(longer, 'a', sizeof longer);
    longer[sizeof longer - 1] = 0;
    conf.path = longer;
    ck_assert_ptr_null(moat_ctl_create(&conf, err, sizeof err));
    conf.path = "/nonexistent/moat.ctl";
    ck_assert_ptr_null(moat_ctl_create(&conf, err, sizeof err));
    start_server(getuid());
}
END_TEST

/* --- noise --- */

static uint64_t seed = 1;

static unsigned below(unsigned n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(seed >> 33) % n;
}

/* A message that is right but for some bytes, or nothing but noise. */
static size_t make_noise(uint8_t *out, size_t max)
{
    struct moat_ctl_head head = {.type = (uint16_t)below(MOAT_CTL_TRACED + 2),
                                 .version = MOAT_CTL_VERSION};
    size_t len;

    if (!below(4)) {
        len = 1 + below(below(20) ? 300 : (unsigned)max - 1);
        for (size_t i = 0; i < len; i++)
            out[i] = (uint8_t)below(256);
        if (len >= sizeof head && below(2))
            memcpy(out, &head, sizeof head);
        return len;
    }
    len = valid_body(head.type, out + sizeof head);
    if (head.type == MOAT_CTL_IMPORT)
        len += make_frame(out + sizeof head + len, (uint16_t)below(50));
    head.len = (uint32_t)len;
    memcpy(out, &head, sizeof head);
    for (unsigned n = below(4); n; n--)
        out[below((unsigned)(sizeof head + len))] = (uint8_t)below(256);
    return sizeof head + len;
}

START_TEST(noise)
{
    static uint8_t buf[MOAT_CTL_MAX];
    size_t blob_len;
    uint8_t *blob = make_blob(5, &blob_len);
    int ruleset = memfd(blob, blob_len, SEALS);
    unsigned fds = open_fds();

    ck_assert_int_eq(claim(VNIC, PATH, MOAT_SLOT_ARRIVING), 0);
    for (unsigned i = 0; i < 30000; i++) {
        size_t len = make_noise(buf, sizeof buf);
        int got;

        ck_assert_int_eq(send_raw(client, buf, len, &ruleset, below(8) == 0), 0);
        got = turn_and_receive(client);
        ck_assert_int_ne(got, 0); /* an answer, or the end */
        while (got > 0) {
            if (reply.fd >= 0)
                close(reply.fd);
            got = receive(client);
        }
        if (got < 0 || !below(500)) {
            close(client);
            moat_ctl_run_once(ctl, 0);
            client = connect_client();
            ck_assert_int_eq(hello(), 0);
            while (receive(client) > 0)
                ;
        }
        clock_ms += below(3);
    }
    close(client);
    moat_ctl_run_once(ctl, 0);
    client = connect_client();
    ck_assert_int_eq(hello(), 0);
    ck_assert_uint_eq(open_fds(), fds);
    close(ruleset);
    free(blob);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {hello_tells_who_it_is,
                                  hello_comes_first,
                                  life_of_a_slot,
                                  lists_go_on_where_they_stopped,
                                  sessions_come_and_go,
                                  every_length_but_the_right_one,
                                  heads_that_lie,
                                  messages_beyond_the_maximum,
                                  claims_out_of_range,
                                  states_out_of_range,
                                  vnics_that_nobody_knows,
                                  imports_out_of_range,
                                  rulesets_that_are_not,
                                  descriptors_that_nobody_asked_for,
                                  refusals_are_told,
                                  a_client_that_does_not_read,
                                  a_subscriber_that_does_not_read,
                                  too_many_clients,
                                  another_user,
                                  the_socket_itself,
                                  noise};
    Suite *s = suite_create("ctl");
    TCase *t = tcase_create("socket");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 300);
    tcase_add_checked_fixture(t, setup, teardown);
    for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++)
        tcase_add_test(t, tests[i]);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
