/* SPDX-License-Identifier: Apache-2.0 */

/* Entry point of libmoat-engine.so: reads the environment, makes the engine, starts the
 * control thread.  Called by the loader on the switch's main thread with EAL up.
 *
 *   MOAT_RUNDIR     folder of the control socket, made with mode 0700; /run/moat
 *   MOAT_MAPPING    file of sessions, slots and rulesets on a hugetlbfs, not of a name that
 *                   EAL removes at its start (*map_*); /dev/hugepages/moat.tables
 *   MOAT_SLOTS      vNICs at most; 128
 *   MOAT_SESSIONS   sessions at most, 64 to 67108864; 262144
 *   MOAT_SESSIONS_IPV6  how many of these may be IPv6 sessions; half of them.  The memory of one is
 *                   128 bytes in place of 96; IPv4 sessions use it too, when theirs is full
 *   MOAT_UNCLAIMED  what a port without a slot gets: block or allow; block
 *   MOAT_ON_DAMAGED the same, if a slot's record in the mapping is damaged (and what all get
 *                   if there is no engine: loader/); block
 *
 * Once started it stays until another engine takes over (moat_engine_ops) or the process ends.
 * Without a control socket the engine still enforces what the mapping holds; the thread keeps
 * trying to make one. */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <rte_log.h>

#include "ctl.h"
#include "engine.h"
#include "handover.h"
#include "hook.h"
#include "loader/engine_abi.h"

#define DEFAULT_RUNDIR "/run/moat"
#define DEFAULT_MAPPING "/dev/hugepages/moat.tables"
#define SOCKET_NAME "moat.ctl"
#define RETRY_TURNS 100 /* of 50 ms: between two attempts to make the socket */

#define LOG(LEVEL, ...) rte_log(RTE_LOG_##LEVEL, (uint32_t)log_type, "moat: " __VA_ARGS__)

moat_engine_entry_fn moat_engine_entry;

static int log_type;
static struct moat_engine *engine;
static struct moat_handover handover; /* what an engine that comes after gets */
static struct moat_ctl_exchange exchange;
static pthread_t control_thread;
static sem_t may_begin; /* the control thread, or end, as `serves` says */
static bool serves;
static int inherited_fd; /* to listen on; 0: none */
static char rundir[MOAT_PATH_MAX - sizeof "/" SOCKET_NAME ".new"];

/* --- environment --- */

static const char *text_of(const char *name, const char *otherwise)
{
    const char *v = secure_getenv(name);

    return v && *v ? v : otherwise;
}

static int read_number(const char *name, uint32_t *out, char *err, size_t err_size)
{
    const char *v = text_of(name, NULL);
    unsigned long n;
    char *end;

    if (!v)
        return 0;
    errno = 0;
    n = strtoul(v, &end, 10);
    if (errno || *end || *v < '0' || *v > '9' || !n || n > UINT32_MAX) {
        snprintf(err, err_size, "%s=%s is not a positive number", name, v);
        return -1;
    }
    *out = (uint32_t)n;
    return 0;
}

static int read_conf(struct moat_engine_conf *conf, char *err, size_t err_size)
{
    const char *unclaimed = text_of("MOAT_UNCLAIMED", "block");
    const char *dir = text_of("MOAT_RUNDIR", DEFAULT_RUNDIR);

    conf->mapping = text_of("MOAT_MAPPING", DEFAULT_MAPPING);
    if (read_number("MOAT_SLOTS", &conf->n_slots, err, err_size) ||
        read_number("MOAT_SESSIONS", &conf->n_sessions, err, err_size) ||
        read_number("MOAT_SESSIONS_IPV6", &conf->n_sessions6, err, err_size))
        return -1;
    if (strcmp(unclaimed, "block") && strcmp(unclaimed, "allow")) {
        snprintf(err, err_size, "MOAT_UNCLAIMED=%s is neither block nor allow", unclaimed);
        return -1;
    }
    conf->unclaimed = *unclaimed == 'a' ? MOAT_FAIL_ALLOW : MOAT_FAIL_BLOCK;
    conf->on_damaged =
        strcmp(text_of("MOAT_ON_DAMAGED", "block"), "allow") ? MOAT_FAIL_BLOCK : MOAT_FAIL_ALLOW;
    if (strlen(dir) >= sizeof rundir) {
        snprintf(err, err_size, "MOAT_RUNDIR=%s is too long for a socket's path", dir);
        return -1;
    }
    memcpy(rundir, dir, strlen(dir) + 1);
    return 0;
}

/* --- control thread --- */

static void log_refusal(const char *text)
{
    LOG(WARNING, "%s\n", text);
}

static int make_rundir(char *err, size_t err_size)
{
    struct stat st;

    if (mkdir(rundir, 0700) && errno != EEXIST) {
        snprintf(err, err_size, "%s: %s", rundir, strerror(errno));
        return -1;
    }
    if (lstat(rundir, &st) || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() ||
        st.st_mode & (S_IWGRP | S_IWOTH)) {
        snprintf(err, err_size, "%s: not a folder that is ours alone", rundir);
        return -1;
    }
    return 0;
}

static struct moat_ctl_server *listen_for_clients(bool complain)
{
    char path[MOAT_PATH_MAX], err[256] = "";
    struct moat_ctl_conf conf = {.engine = engine,
                                 .path = path,
                                 .uid = geteuid(),
                                 .log = log_refusal,
                                 .listen_fd = inherited_fd,
                                 .exchange = &exchange};
    struct moat_ctl_server *ctl = NULL;

    inherited_fd = 0;
    snprintf(path, sizeof path, "%s/" SOCKET_NAME, rundir);
    if (!make_rundir(err, sizeof err))
        ctl = moat_ctl_create(&conf, err, sizeof err);
    if (!ctl && complain)
        LOG(ERR, "no control socket, slots keep what they have: %s\n", err);
    return ctl;
}

/* Until another engine has taken over. */
static void *control(void *aux)
{
    static const struct timespec turn = {.tv_nsec = MOAT_CTL_TURN_MS * 1000000};
    struct moat_ctl_server *ctl;

    (void)aux;
    while (sem_wait(&may_begin))
        ;
    if (!serves)
        return NULL;
    ctl = listen_for_clients(true);
    for (unsigned i = 1; !ctl; i++) {
        moat_engine_turn(engine);
        nanosleep(&turn, NULL);
        if (i % RETRY_TURNS == 0)
            ctl = listen_for_clients(false);
    }
    LOG(INFO, "control socket is %s/" SOCKET_NAME "\n", rundir);
    handover.listen_fd = moat_ctl_listen_fd(ctl);
    while (moat_ctl_run_once(ctl, MOAT_CTL_TURN_MS))
        ;
    moat_ctl_destroy(ctl);
    return NULL;
}

/* Signals are the switch's business. */
static int start_control(char *err, size_t err_size)
{
    sigset_t all, before;
    int rc;

    sem_init(&may_begin, 0, 0);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&control_thread, NULL, control, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc) {
        snprintf(err, err_size, "no control thread: %s", strerror(rc));
        return -1;
    }
    pthread_setname_np(control_thread, "moat-ctl");
    return 0;
}

/* --- exchange --- */

static int prepare(char *err, size_t err_size)
{
    return moat_handover_prepare(engine, err, err_size);
}

static int take_over(char *err, size_t err_size)
{
    const struct moat_handover *before = engine->conf.before;
    int rc = moat_handover_take(engine, err, err_size);

    if (!rc && before->port_of_vid)
        hook_take_over(before->port_of_vid);
    return rc;
}

/* The one before has ended, but for its control thread, which calls this. */
static void succeed(const struct moat_exchanged *took)
{
    struct moat_event ev = {.type = MOAT_EV_REPLACED, .value = took->gate_us};
    const struct moat_handover *before = engine->conf.before;

    if (before->listen_fd >= 0)
        inherited_fd = fcntl(before->listen_fd, F_DUPFD_CLOEXEC, 3);
    if (inherited_fd < 0)
        inherited_fd = 0;
    moat_handover_finish(engine);
    handover.replacements = engine->replacements;
    engine->gate_us = took->gate_us;
    snprintf(ev.text, sizeof ev.text, "engine %s, number %u since the switch started", MOAT_VERSION,
             engine->replacements + 1);
    moat_event_post(&engine->events, &ev, false);
}

static void serve(const struct moat_exchanged *took)
{
    if (took)
        succeed(took);
    serves = true;
    LOG(INFO,
        "engine %s: mapping %s, %u slots and %u sessions recovered, room for %u and %u (%u "
        "of these for IPv6); ports without a slot: %s\n",
        MOAT_VERSION, engine->conf.mapping, engine->recovered_slots, engine->recovered_sessions,
        engine->conf.n_slots, engine->conf.n_sessions, engine->conf.n_sessions6,
        moat_fail_name(engine->conf.unclaimed));
    sem_post(&may_begin);
}

static void destroy(void)
{
    if (!serves) {
        sem_post(&may_begin);
        pthread_join(control_thread, NULL);
        moat_handover_cancel(engine);
    }
    sem_destroy(&may_begin);
    moat_engine_destroy(engine);
    engine = NULL;
}

/* --- entry --- */

static int (*begin_exchange)(const char *file, char *err, size_t err_size);
static int (*end_exchange)(struct moat_exchanged *, char *err, size_t err_size);

static int replace_begin(const char *file, char *err, size_t err_size)
{
    return begin_exchange(file, err, err_size);
}

static int replace_end(struct moat_ctl_replaced *out, char *err, size_t err_size)
{
    struct moat_exchanged took;
    int rc = end_exchange(&took, err, err_size);

    *out = (struct moat_ctl_replaced){
        .prepare_ms = took.prepare_ms, .gate_us = took.gate_us, .tries = took.tries};
    memcpy(out->engine, took.version, sizeof out->engine);
    return rc;
}

static const struct moat_engine_ops engine_ops = {
    .abi = MOAT_ENGINE_ABI,
    .size = sizeof engine_ops,
    .version = MOAT_VERSION,
    .dequeue = hook_dequeue,
    .enqueue = hook_enqueue,
    .port_register = hook_port_register,
    .connected = hook_connected,
    .started = hook_started,
    .logging = hook_logging,
    .stopped = hook_stopped,
    .disconnected = hook_disconnected,
    .handover = &handover,
    .prepare = prepare,
    .take_over = take_over,
    .serve = serve,
    .destroy = destroy,
};

__attribute__((visibility("default"))) const struct moat_engine_ops *
moat_engine_entry(const struct moat_switch *sw, char *err, size_t err_size)
{
    struct moat_engine_conf conf = {.inject = hook_inject, .before = sw->before};

    log_type = rte_log_register_type_and_pick_level("moat", RTE_LOG_INFO);
    if (log_type < 0)
        log_type = RTE_LOGTYPE_USER1;
    if (sw->abi != MOAT_ENGINE_ABI || sw->size < sizeof *sw) {
        snprintf(err, err_size, "the loader has interface %u, this engine %u", sw->abi,
                 MOAT_ENGINE_ABI);
        return NULL;
    }
    if (read_conf(&conf, err, err_size))
        return NULL;
    engine = moat_engine_create(&conf, err, err_size);
    if (!engine)
        return NULL;
    snprintf(engine->file, sizeof engine->file, "%s", sw->file);
    if (hook_init(engine, sw, err, err_size) || start_control(err, err_size)) {
        if (sw->before)
            moat_handover_cancel(engine);
        moat_engine_destroy(engine);
        return NULL;
    }
    exchange = (struct moat_ctl_exchange){replace_begin, replace_end};
    begin_exchange = sw->replace_begin;
    end_exchange = sw->replace_end;
    moat_handover_offer(engine, &handover);
    handover.port_of_vid = hook_port_of_vid;
    if (engine->n_damaged)
        LOG(CRIT,
            "mapping %s is damaged at %u slots: %s; they have no policy until the agent sends it "
            "again; ports without a slot: %s\n",
            conf.mapping, engine->n_damaged, engine->damage,
            moat_fail_name(engine->conf.unclaimed));
    return &engine_ops;
}
