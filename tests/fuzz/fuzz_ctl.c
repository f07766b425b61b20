/* SPDX-License-Identifier: Apache-2.0 */

/* Bytes as messages on a real control socket, from two clients, with and without
 * descriptors.  Every request is answered once, in words if it is refused, and a refused one
 * changes nothing; packets pass meanwhile; what is no request ends that client's connection at
 * most. */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "datapath/ctl.h"
#include "tests/lib/blob.h"
#include "tests/lib/traffic.h"

#include "tests/fuzz/fuzz.h"

#define N_CLIENTS 2
#define MAX_MESSAGES 40
#define INPUTS_PER_ENGINE 1000
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

static char dir[64], path[96];
static int ruleset_fd = -1; /* sealed, and sound */
static struct rig rig;
static struct moat_ctl_server *server;
static int client[N_CLIENTS];
static struct choice c;
static struct traffic traffic;

static struct {
    struct moat_ctl_head head;
    uint8_t body[MOAT_CTL_MAX];
} out, in;

static void remove_dir(void)
{
    rmdir(dir);
}

static int make_memfd(const void *bytes, size_t n, unsigned seals)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    HOLDS(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
    HOLDS(!seals || !fcntl(fd, F_ADD_SEALS, seals));
    return fd;
}

static void prepare(void)
{
    struct blob *b = blob_create();
    uint8_t *bytes;
    size_t len;

    snprintf(dir, sizeof dir, "/tmp/moat-fuzz-XXXXXX");
    HOLDS(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/ctl", dir);
    atexit(remove_dir);
    blob_rule(b, MOAT_ALLOW, "all");
    bytes = blob_emit(b, &len);
    ruleset_fd = make_memfd(bytes, len, SEALS);
    free(bytes);
    blob_destroy(b);
}

static int connect_client(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    HOLDS(fd >= 0 && !connect(fd, (struct sockaddr *)&a, sizeof a));
    moat_ctl_run_once(server, 0);
    return fd;
}

/* --- requests --- */

static void put_vnic(void *field)
{
    static const char *const names[4] = {"vnic-a", "vnic-b", "vnic-new", ""};

    snprintf(field, MOAT_ID_MAX, "%s", names[choice_below(&c, 4)]);
}

/* A sound body of a type, for the bytes of the input to be laid over. */
static size_t template(unsigned type, uint8_t *body)
{
    static const size_t sizes[] = {
        [MOAT_CTL_HELLO] = 4,
        [MOAT_CTL_SLOT_LIST] = sizeof(struct moat_ctl_list),
        [MOAT_CTL_PORT_LIST] = sizeof(struct moat_ctl_list),
        [MOAT_CTL_CLAIM] = sizeof(struct moat_slot_conf),
        [MOAT_CTL_RELEASE] = sizeof(struct moat_ctl_vnic),
        [MOAT_CTL_STATE] = sizeof(struct moat_ctl_state),
        [MOAT_CTL_RULESET] = sizeof(struct moat_ctl_vnic),
        [MOAT_CTL_SESSIONS] = sizeof(struct moat_ctl_sessions),
        [MOAT_CTL_IMPORT] = sizeof(struct moat_ctl_import) + 4 + MOAT_SES_LEN4,
        [MOAT_CTL_COUNTERS] = sizeof(struct moat_ctl_vnic),
        [MOAT_CTL_RULE_HITS] = sizeof(struct moat_ctl_hits),
        [MOAT_CTL_SUBSCRIBE] = 0,
        [MOAT_CTL_HANDED_OVER] = sizeof(struct moat_ctl_vnic),
        [MOAT_CTL_RULESET_GET] = sizeof(struct moat_ctl_vnic),
        [MOAT_CTL_FLUSH] = sizeof(struct moat_ctl_vnic),
        [MOAT_CTL_TRACE] = sizeof(struct moat_ctl_trace) + 3 * sizeof(struct moat_trace_insn),
        [MOAT_CTL_REPLACE] = sizeof(struct moat_ctl_replace),
    };
    static const uint32_t version = MOAT_CTL_VERSION;
    size_t size = type < sizeof sizes / sizeof *sizes ? sizes[type] : 0;

    memset(body, 0, size);
    if (type == MOAT_CTL_HELLO) {
        memcpy(body, &version, sizeof version);
    } else if (type == MOAT_CTL_CLAIM) {
        struct moat_slot_conf *conf = (void *)body;

        rig_conf(choice_below(&c, RIG_SLOTS), (enum moat_slot_state)(1 + choice_below(&c, 4)),
                 conf);
    } else if (type == MOAT_CTL_TRACE) {
        static const struct moat_trace_insn all = {.code = 6, .k = 100}; /* return 100 */
        struct moat_ctl_trace *t = (void *)body;

        put_vnic(t->vnic);
        t->n_insns = 3;
        t->snaplen = 100;
        t->which = MOAT_TRACE_PASSED | MOAT_TRACE_REFUSED;
        memcpy(body + size - sizeof all, &all, sizeof all);
    } else if (type == MOAT_CTL_REPLACE) {
        memcpy(body, "/engine", choice_one_in(&c, 2) ? sizeof "/engine" : 0);
    } else if (size >= MOAT_ID_MAX) {
        put_vnic(body);
        if (type == MOAT_CTL_STATE)
            ((struct moat_ctl_state *)(void *)body)->state = (uint8_t)choice_below(&c, 8);
        else if (type == MOAT_CTL_IMPORT)
            ((struct moat_ctl_import *)(void *)body)->n = 1;
    }
    return size;
}

static size_t make_request(void)
{
    unsigned type = choice_below(&c, MOAT_CTL_REPLACE + 1);
    size_t len = template(type, out.body);

    if (choice_one_in(&c, 8))
        len = choice_below(&c, choice_one_in(&c, 8) ? sizeof out.body : 2048);
    for (unsigned n = choice_below(&c, 4); n-- && len;) {
        size_t at = choice_below(&c, len < 256 ? (uint32_t)len : 65536) % len;

        choice_take(&c, out.body + at, len - at < 4 ? len - at : 4);
    }
    if (type == MOAT_CTL_IMPORT && len > sizeof(struct moat_ctl_import) + 8 && choice_one_in(&c, 2))
        choice_take(&c, out.body + sizeof(struct moat_ctl_import),
                    len - sizeof(struct moat_ctl_import));
    out.head = (struct moat_ctl_head){.type = (uint16_t)type,
                                      .version = MOAT_CTL_VERSION,
                                      .xid = choice_below(&c, 256),
                                      .len = (uint32_t)len};
    if (choice_one_in(&c, 16))
        choice_take(&c, &out.head, sizeof out.head);
    len += sizeof out.head;
    return choice_one_in(&c, 16) ? choice_below(&c, (uint32_t)len + 1) : len;
}

static void send_request(int fd, size_t len)
{
    struct iovec iov = {&out, len};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    union {
        char buf[CMSG_SPACE(2 * sizeof(int))];
        struct cmsghdr align;
    } control;
    unsigned n_fds = out.head.type == MOAT_CTL_RULESET ? 1 : 0;
    int fds[2] = {ruleset_fd, ruleset_fd}, made = -1;

    if (choice_one_in(&c, 8))
        n_fds = choice_below(&c, 3);
    if (n_fds && choice_one_in(&c, 4)) {
        uint8_t bytes[512];
        size_t n = choice_take(&c, bytes, choice_below(&c, sizeof bytes));

        fds[0] = made = make_memfd(bytes, n, choice_one_in(&c, 4) ? F_SEAL_GROW : SEALS);
    }
    if (n_fds) {
        struct cmsghdr *cm;

        memset(&control, 0, sizeof control);
        msg.msg_control = control.buf;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        cm = CMSG_FIRSTHDR(&msg);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(cm), fds, n_fds * sizeof(int));
    }
    HOLDS(sendmsg(fd, &msg, MSG_NOSIGNAL) >= 0 || errno == EAGAIN || errno == EPIPE ||
          errno == ECONNRESET || errno == EMSGSIZE);
    if (made >= 0)
        close(made);
}

/* --- answers --- */

/* Length of the next message, -1: none now, 0: hung up. */
static ssize_t receive(int fd)
{
    struct iovec iov = {&in, sizeof in};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.buf,
                         .msg_controllen = sizeof control.buf};
    ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (n > 0 && CMSG_FIRSTHDR(&msg)) {
        int got;

        memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof got);
        HOLDS((in.head.type & ~MOAT_CTL_REPLY) == MOAT_CTL_RULESET_GET && !in.head.status);
        close(got);
    }
    return n < 0 && errno == ECONNRESET ? 0 : n;
}

/* Reads what is there: events, and at most one answer, to `type`.  True: there was one, and
 * it is in `in`.  A client that was hung up on comes again. */
static bool take_answer(unsigned i, uint16_t type, uint32_t xid)
{
    bool answered = false;
    int32_t status = 0;
    ssize_t n;

    while ((n = receive(client[i])) > 0) {
        HOLDS(n >= (ssize_t)sizeof in.head && in.head.len == (size_t)n - sizeof in.head);
        HOLDS(in.head.version == MOAT_CTL_VERSION || type == MOAT_CTL_REPLACE);
        if (in.head.type == MOAT_CTL_EVENT || in.head.type == MOAT_CTL_TRACED) {
            HOLDS(!in.head.xid);
            continue;
        }
        HOLDS(!answered && in.head.type == (type | MOAT_CTL_REPLY) && in.head.xid == xid);
        HOLDS(!in.head.status || (in.head.status < 0 && in.head.len > 3));
        answered = true;
        status = in.head.status;
    }
    if (!n) {
        close(client[i]);
        client[i] = connect_client();
    }
    in.head.status = status;
    return answered;
}

/* What a refused request must leave alone. */
static void snapshot(struct moat_slot_info out_[RIG_SLOTS + 1])
{
    memset(out_, 0, (RIG_SLOTS + 1) * sizeof *out_);
    for (uint32_t i = 0; i <= RIG_SLOTS; i++)
        moat_slot_info(rig.e, i, &out_[i]);
}

/* Something to trace, to count, to log. */
static void some_packets(void)
{
    for (unsigned n = 1 + choice_below(&c, 4); n; n--) {
        struct traffic_pkt p;
        struct moat_pkt pkt;
        unsigned hop;

        traffic_next(&traffic, &p);
        for (hop = 0; hop < 2; hop++) {
            unsigned end = hop ? p.to : p.from;

            pkt = (struct moat_pkt){.data = p.f.data, .len = p.len, .total = p.total};
            if (end < RIG_SLOTS)
                moat_pipe_burst(moat_thread_self(rig.e), rig.port[end],
                                hop ? MOAT_TO_VM : MOAT_FROM_VM, &pkt, 1);
        }
    }
}

static void one_message(void)
{
    static struct moat_slot_info before[RIG_SLOTS + 1], after[RIG_SLOTS + 1];
    unsigned i = choice_below(&c, N_CLIENTS);
    size_t len = make_request();

    snapshot(before);
    send_request(client[i], len);
    moat_ctl_run_once(server, 0);
    if (len < sizeof out.head)
        out.head.type = 0, out.head.xid = 0; /* what the server makes of half a head */
    if (!take_answer(i, out.head.type, out.head.xid) || in.head.status) {
        snapshot(after);
        HOLDS(!memcmp(before, after, sizeof before));
    }
}

/* An exchange that is always called off. */
static int begin_exchange(const char *file, char *err, size_t err_size)
{
    HOLDS((!*file || *file == '/') && strlen(file) < MOAT_FILE_MAX);
    snprintf(err, err_size, "not this one");
    return file[0] && file[1] == 'n' ? -EBUSY : 0;
}

static int end_exchange(struct moat_ctl_replaced *out_, char *err, size_t err_size)
{
    memset(out_, 0, sizeof *out_);
    snprintf(err, err_size, "called off");
    return -EBUSY;
}

/* The engine serves many inputs, for speed; each finds it without slots but one. */
static void start_engine(void)
{
    static unsigned inputs;
    struct moat_slot_info info;
    char err[256];

    if (inputs++ % INPUTS_PER_ENGINE == 0) {
        if (rig.e)
            rig_destroy(&rig);
        rig_clock_ms = 1000000;
        rig_create_sized(&rig, NULL, 64);
    }
    for (uint32_t i = 0; i < rig.e->conf.n_slots; i++)
        if (moat_slot_info(rig.e, i, &info))
            HOLDS(!moat_slot_release(rig.e, info.conf.vnic, err, sizeof err));
    rig_clock_ms += 1000;
    moat_engine_turn(rig.e);
    moat_engine_turn(rig.e);
    rig_claim(&rig, 0, MOAT_SLOT_ARRIVING);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    static const struct moat_ctl_exchange exchange = {begin_exchange, end_exchange};
    struct moat_ctl_conf conf = {
        .engine = NULL, .path = path, .uid = getuid(), .exchange = &exchange};
    static const uint32_t version = MOAT_CTL_VERSION;
    char err[256];

    if (ruleset_fd < 0)
        prepare();
    choice_bytes(&c, input, size);
    traffic_init(&traffic, &c, 4);
    start_engine();
    conf.engine = rig.e;
    server = moat_ctl_create(&conf, err, sizeof err);
    HOLDS(server);
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        client[i] = connect_client();
        if (choice_one_in(&c, 8))
            continue; /* this one does not greet */
        out.head = (struct moat_ctl_head){
            .type = MOAT_CTL_HELLO, .version = MOAT_CTL_VERSION, .xid = 1, .len = sizeof version};
        memcpy(out.body, &version, sizeof version);
        HOLDS(send(client[i], &out, sizeof out.head + sizeof version, 0) > 0);
        moat_ctl_run_once(server, 0);
        HOLDS(take_answer(i, MOAT_CTL_HELLO, 1) && !in.head.status);
    }
    for (unsigned n = 0; n < MAX_MESSAGES && !choice_ended(&c); n++) {
        if (choice_one_in(&c, 4))
            some_packets();
        one_message();
    }
    for (unsigned i = 0; i < N_CLIENTS; i++)
        close(client[i]);
    moat_ctl_run_once(server, 0);
    moat_ctl_destroy(server);
    return 0;
}
