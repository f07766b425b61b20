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
 * Once started it stays for the life of the process.  Without a control socket the
 * engine still enforces what the mapping holds; the thread keeps trying to make one. */

#include <errno.h>
#include <pthread.h>
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
#include "hook.h"
#include "loader/engine_abi.h"

#define DEFAULT_RUNDIR "/run/moat"
#define DEFAULT_MAPPING "/dev/hugepages/moat.tables"
#define SOCKET_NAME "moat.ctl"
#define RETRY_TURNS 100 /* of 50 ms: between two attempts to make the socket */

#define LOG(LEVEL, ...) rte_log(RTE_LOG_##LEVEL, (uint32_t)log_type, "moat: " __VA_ARGS__)

moat_engine_entry_fn moat_engine_entry;

static int log_type;
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

static struct moat_ctl_server *listen_for_clients(struct moat_engine *engine, bool complain)
{
    char path[MOAT_PATH_MAX], err[256] = "";
    struct moat_ctl_conf conf = {engine, path, geteuid(), log_refusal};
    struct moat_ctl_server *ctl = NULL;

    snprintf(path, sizeof path, "%s/" SOCKET_NAME, rundir);
    if (!make_rundir(err, sizeof err))
        ctl = moat_ctl_create(&conf, err, sizeof err);
    if (!ctl && complain)
        LOG(ERR, "no control socket, slots keep what they have: %s\n", err);
    return ctl;
}

static __attribute__((noreturn)) void *control(void *engine)
{
    static const struct timespec turn = {.tv_nsec = MOAT_CTL_TURN_MS * 1000000};
    struct moat_ctl_server *ctl = listen_for_clients(engine, true);

    for (unsigned i = 1; !ctl; i++) {
        moat_engine_turn(engine);
        nanosleep(&turn, NULL);
        if (i % RETRY_TURNS == 0)
            ctl = listen_for_clients(engine, false);
    }
    LOG(INFO, "control socket is %s/" SOCKET_NAME "\n", rundir);
    for (;;)
        moat_ctl_run_once(ctl, MOAT_CTL_TURN_MS);
}

/* Signals are the switch's business. */
static int start_control(struct moat_engine *engine, char *err, size_t err_size)
{
    sigset_t all, before;
    pthread_t thread;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&thread, NULL, control, engine);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc) {
        snprintf(err, err_size, "no control thread: %s", strerror(rc));
        return -1;
    }
    pthread_setname_np(thread, "moat-ctl");
    pthread_detach(thread);
    return 0;
}

/* --- entry --- */

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
};

__attribute__((visibility("default"))) const struct moat_engine_ops *
moat_engine_entry(const struct moat_switch *sw, char *err, size_t err_size)
{
    struct moat_engine_conf conf = {.inject = hook_inject};
    struct moat_engine *engine;

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
    if (hook_init(engine, sw, err, err_size) || start_control(engine, err, err_size)) {
        moat_engine_destroy(engine);
        return NULL;
    }
    if (engine->n_damaged)
        LOG(CRIT,
            "mapping %s is damaged at %u slots: %s; they have no policy until the agent sends it "
            "again; ports without a slot: %s\n",
            conf.mapping, engine->n_damaged, engine->damage,
            moat_fail_name(engine->conf.unclaimed));
    LOG(INFO,
        "engine %s: mapping %s, %u slots and %u sessions recovered, room for %u and %u (%u "
        "of these for IPv6); ports without a slot: %s\n",
        MOAT_VERSION, conf.mapping, engine->recovered_slots, engine->recovered_sessions,
        engine->conf.n_slots, engine->conf.n_sessions, engine->conf.n_sessions6,
        moat_fail_name(engine->conf.unclaimed));
    return &engine_ops;
}
