/* SPDX-License-Identifier: Apache-2.0 */

/* Says wrong things to a running engine's control socket.
 *
 *   bad_ctl SOCKET VNIC
 *
 * VNIC has an active slot with a ruleset.  One line for each wrong thing: its name, the
 * engine's errno and its reason.  Exit 0 if each of them was refused, answered with a
 * reason and counted by exactly one event; else 1, and the line says BAD.
 *
 * Session records need a slot that is arriving: one of our own, of the vNIC "bad-ctl",
 * which is released in the end.  moatd must not run meanwhile: it would release it. */

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

#include "ctl_client.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
#define PACE_MS 130 /* the engine sends ten such events a second */
#define GHOST "bad-ctl"

static const char *path, *vnic;
static struct moat_ctl *events;
static int64_t refused = -1; /* the engine's count */
static bool all_good = true;

static void die(const char *what)
{
    fprintf(stderr, "bad_ctl: %s\n", what);
    exit(2);
}

/* --- the engine's count --- */

/* The next REFUSED event within ms; false if none comes. */
static bool next_refusal(int ms, struct moat_event *ev)
{
    struct pollfd p = {.fd = moat_ctl_fd(events), .events = POLLIN};
    int rc;

    do {
        while ((rc = moat_ctl_next_event(events, ev)) > 0)
            if (ev->type == MOAT_EV_REFUSED)
                return true;
        if (rc < 0)
            die("the engine closed the connection for events");
    } while (poll(&p, 1, ms) > 0);
    return false;
}

static void outcome(const char *name, int status, const char *why)
{
    struct moat_event ev;
    bool good = status < 0 && *why;

    printf("%-24s %s: %s", name, status < 0 ? strerrorname_np(-status) : "ACCEPTED", why);
    if (!next_refusal(2000, &ev)) {
        printf(" (BAD: no event)");
        good = false;
    } else if (refused >= 0 && ev.value != refused + 1) {
        printf(" (BAD: counted %lld times)", (long long)(ev.value - refused));
        good = false;
    } else {
        refused = ev.value;
    }
    printf("%s\n", good ? "" : " BAD");
    all_good &= good;
    poll(NULL, 0, PACE_MS);
}

/* --- raw messages --- */

static int connect_raw(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (strlen(path) >= sizeof a.sun_path)
        die("the socket's path is too long");
    strcpy(a.sun_path, path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a))
        die("cannot connect");
    return fd;
}

/* Sends n bytes, expects an answer; status and reason as the engine gives them. */
static int exchange(int fd, const void *message, size_t n, char *why, size_t why_size)
{
    static uint8_t in[MOAT_CTL_MAX];
    struct moat_ctl_head head;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    ssize_t got;

    if (send(fd, message, n, 0) != (ssize_t)n)
        die("cannot send");
    if (poll(&p, 1, 3000) <= 0 || (got = recv(fd, in, sizeof in, 0)) < (ssize_t)sizeof head) {
        snprintf(why, why_size, "no answer");
        return 0;
    }
    memcpy(&head, in, sizeof head);
    snprintf(why, why_size, "%.*s", head.status ? (int)((size_t)got - sizeof head) : 0,
             (const char *)in + sizeof head);
    return head.status;
}

struct message {
    struct moat_ctl_head head;
    uint8_t body[sizeof(struct moat_slot_conf)];
};

static void raw(const char *name, bool greet, const void *message, size_t n)
{
    struct {
        struct moat_ctl_head head;
        uint32_t version;
    } hello = {{.type = MOAT_CTL_HELLO, .version = MOAT_CTL_VERSION, .len = 4}, MOAT_CTL_VERSION};
    int fd = connect_raw(), status;
    char why[512];

    if (greet && exchange(fd, &hello, sizeof hello, why, sizeof why))
        die("HELLO was refused");
    status = exchange(fd, message, n, why, sizeof why);
    outcome(name, status, why);
    close(fd);
}

static struct message message_of(unsigned type, uint32_t len)
{
    struct message m = {.head = {.type = (uint16_t)type, .version = MOAT_CTL_VERSION, .len = len}};

    snprintf((char *)m.body, MOAT_ID_MAX, "%s", vnic); /* all bodies but LIST begin so */
    return m;
}

static void raw_messages(void)
{
    static uint8_t huge[MOAT_CTL_MAX + 1];
    const uint32_t n = sizeof(struct moat_ctl_state);
    struct message m = message_of(MOAT_CTL_STATE, n);
    struct moat_ctl_state *st = (struct moat_ctl_state *)m.body;

    st->state = MOAT_SLOT_BLOCKED; /* what would happen if it were believed */
    raw("half a head", true, &m, sizeof m.head / 2);
    raw("truncated body", true, &m, sizeof m.head + n / 2);
    raw("longer than it says", true, &m, sizeof m.head + n + 8);
    memcpy(huge, &m, sizeof m);
    raw("too long", true, huge, sizeof huge);
    raw("no HELLO", false, &m, sizeof m.head + n);
    st->state = 77;
    raw("unknown state", true, &m, sizeof m.head + n);
    st->state = MOAT_SLOT_BLOCKED;
    memset(m.body, 'x', MOAT_ID_MAX);
    raw("id without an end", true, &m, sizeof m.head + n);
    m = message_of(MOAT_CTL_STATE, n);
    m.head.version++;
    raw("another version", true, &m, sizeof m.head + n);
    m = message_of(200, n);
    raw("unknown request", true, &m, sizeof m.head + n);
    m = message_of(MOAT_CTL_RULESET, sizeof(struct moat_ctl_vnic));
    raw("ruleset without a file", true, &m, sizeof m.head + sizeof(struct moat_ctl_vnic));
}

/* --- rulesets --- */

static int memfd_of(const void *blob, size_t n, int seals)
{
    int fd = memfd_create("bad_ctl", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || write(fd, blob, n) != (ssize_t)n || (seals && fcntl(fd, F_ADD_SEALS, seals)))
        die("no memfd to be had");
    return fd;
}

static void ruleset(struct moat_ctl *c, const char *name, const void *blob, size_t n, int seals)
{
    struct moat_ctl_vnic body = {{0}};
    struct moat_ctl_reply reply;
    int fd = memfd_of(blob, n, seals), rc;

    snprintf(body.vnic, sizeof body.vnic, "%s", vnic);
    rc = moat_ctl_call(c, MOAT_CTL_RULESET, &body, sizeof body, fd, &reply);
    close(fd);
    outcome(name, rc, rc ? moat_ctl_error(c) : "");
}

static void rulesets(struct moat_ctl *c)
{
    uint8_t *good;
    size_t n;

    if (moat_ctl_ruleset_get(c, vnic, (void **)&good, &n))
        die(moat_ctl_error(c));
    uint8_t *bad = malloc(n);
    if (!bad)
        die("out of memory");
    ruleset(c, "ruleset not sealed", good, n, 0);
    ruleset(c, "ruleset cut in half", good, n / 2, SEALS);
    memcpy(bad, good, n);
    bad[n / 2] ^= 1;
    ruleset(c, "ruleset with a bit turned", bad, n, SEALS);
    for (size_t i = 0; i < n; i++)
        bad[i] = (uint8_t)(i * 167 + (i >> 8));
    ruleset(c, "ruleset of noise", bad, n, SEALS);
    free(bad);
    free(good);
}

/* --- session records --- */

/* A frame with a right or wrong checksum: a copy of a live session's. */
static size_t frame_of(struct moat_ctl *c, uint8_t *frame)
{
    struct moat_ctl_page page;

    moat_ctl_page_init(&page, vnic, 0);
    while (moat_ctl_sessions(c, &page) > 0) {
        size_t n = moat_ctl_frame_len(page.frames, page.left);
        if (!n)
            continue;
        memcpy(frame, page.frames, n);
        return n;
    }
    die("the vNIC has no session to make bad records from");
    return 0;
}

static int import(struct moat_ctl *c, const char *to, const uint8_t *frame, size_t len,
                  struct moat_ctl_import_reply *sum)
{
    memset(sum, 0, sizeof *sum);
    return moat_ctl_import(c, to, false, frame, len, sum);
}

static void records(struct moat_ctl *c)
{
    struct moat_slot_conf conf = {.vnic = GHOST,
                                  .vm = GHOST,
                                  .path = "/nonexistent/bad-ctl",
                                  .state = MOAT_SLOT_ARRIVING,
                                  .epoch = 1};
    uint8_t frames[2 * MOAT_SES_FRAME_MAX];
    struct moat_ctl_import_reply sum;
    size_t n = frame_of(c, frames);
    int rc;

    moat_settings_init(&conf.settings);
    rc = import(c, vnic, frames, n, &sum);
    outcome("records, nobody arrives", rc ? rc : (int)-sum.refused, rc ? moat_ctl_error(c) : "");

    if (moat_ctl_claim(c, &conf))
        die(moat_ctl_error(c));
    memcpy(frames + n, frames, n);
    frames[n + 20] ^= 1;
    rc = import(c, GHOST, frames, 2 * n, &sum);
    bool good = !rc && sum.accepted == 1 && sum.refused == 1;
    struct moat_event ev;
    printf("%-24s %u accepted, %u refused: ", "one good, one bad record", sum.accepted,
           sum.refused);
    if (next_refusal(2000, &ev)) {
        printf("%s%s\n", ev.text, good ? "" : " BAD");
    } else {
        printf("%s BAD (no event)\n", rc ? moat_ctl_error(c) : "");
        good = false;
    }
    all_good &= good;
    if (moat_ctl_release(c, GHOST))
        die(moat_ctl_error(c));
}

int main(int argc, char **argv)
{
    struct moat_ctl *c;
    char why[256];

    if (argc != 3) {
        fprintf(stderr, "usage: bad_ctl SOCKET VNIC\n");
        return 2;
    }
    path = argv[1];
    vnic = argv[2];
    if (moat_ctl_open(path, 3000, &c, why, sizeof why) ||
        moat_ctl_open(path, 3000, &events, why, sizeof why) || moat_ctl_subscribe(events))
        die(why);
    raw_messages();
    rulesets(c);
    records(c);
    moat_ctl_close(events);
    moat_ctl_close(c);
    return all_good ? 0 : 1;
}
