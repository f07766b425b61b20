/* SPDX-License-Identifier: Apache-2.0 */

/* moatd: one poll loop, one thread.  Each turn runs the sources of facts first
 * (databases, links, the fast path, other agents), then the vNICs. */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "alert.h"
#include "cluster.h"
#include "command-line.h"
#include "ctl_client.h"
#include "daemon.h"
#include "dirs.h"
#include "engine.h"
#include "fatal-signal.h"
#include "host_config.h"
#include "intent.h"
#include "link.h"
#include "openvswitch/poll-loop.h"
#include "openvswitch/vlog.h"
#include "ovsdb.h"
#include "peer.h"
#include "status.h"
#include "stream-ssl.h"
#include "stream.h"
#include "taps.h"
#include "unixctl.h"
#include "util.h"
#include "vnic.h"

VLOG_DEFINE_THIS_MODULE(moatd);

static struct {
    const char *db, *ovsdb, *host, *listen, *advertise, *ctl, *host_config, *unixctl;
} opt = {
    .ovsdb = "unix:/run/openvswitch/db.sock",
    .ctl = MOAT_CTL_PATH,
    .host_config = HOST_CONFIG_FILE,
};

static void usage(void)
{
    printf("moatd: the agent of Moat, a firewall around every VM in Open vSwitch\n"
           "usage: moatd [OPTIONS]\n"
           "\nOptions:\n"
           "  --db=REMOTE             the Moat database (ssl:IP:PORT, unix:FILE; required)\n"
           "  --ovsdb=REMOTE          the local Open_vSwitch database\n"
           "                          (default: %s)\n"
           "  --host=NAME             name of this host, as in the database and in its\n"
           "                          certificate (default: the system's host name)\n"
           "  --listen=pssl:PORT[:IP] where other agents connect to\n"
           "  --advertise=ssl:IP:PORT where they find us; written to the database\n"
           "  --ctl=FILE              the fast path's control socket (default: %s)\n"
           "  --host-config=FILE      this host's defaults (default: %s)\n",
           opt.ovsdb, opt.ctl, opt.host_config);
    stream_usage("REMOTE", true, false, false);
    daemon_usage();
    vlog_usage();
    printf("\nOther options:\n"
           "  --unixctl=SOCKET        override default control socket name\n"
           "  -h, --help              display this help message\n"
           "  -V, --version           display version information\n");
    exit(EXIT_SUCCESS);
}

static void parse_options(int argc, char *argv[])
{
    enum {
        OPT_DB = UCHAR_MAX + 1,
        OPT_OVSDB,
        OPT_HOST,
        OPT_LISTEN,
        OPT_ADVERTISE,
        OPT_CTL,
        OPT_HOST_CONFIG,
        OPT_UNIXCTL,
        VLOG_OPTION_ENUMS,
        DAEMON_OPTION_ENUMS,
        SSL_OPTION_ENUMS,
    };
    static const struct option options[] = {
        {"db", required_argument, NULL, OPT_DB},
        {"ovsdb", required_argument, NULL, OPT_OVSDB},
        {"host", required_argument, NULL, OPT_HOST},
        {"listen", required_argument, NULL, OPT_LISTEN},
        {"advertise", required_argument, NULL, OPT_ADVERTISE},
        {"ctl", required_argument, NULL, OPT_CTL},
        {"host-config", required_argument, NULL, OPT_HOST_CONFIG},
        {"unixctl", required_argument, NULL, OPT_UNIXCTL},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'V'},
        VLOG_LONG_OPTIONS,
        DAEMON_LONG_OPTIONS,
        STREAM_SSL_LONG_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    char *short_options = ovs_cmdl_long_options_to_short_options(options);

    for (;;) {
        int c = getopt_long(argc, argv, short_options, options, NULL);
        if (c == -1)
            break;
        switch (c) {
        case OPT_DB:
            opt.db = optarg;
            break;
        case OPT_OVSDB:
            opt.ovsdb = optarg;
            break;
        case OPT_HOST:
            opt.host = optarg;
            break;
        case OPT_LISTEN:
            opt.listen = optarg;
            break;
        case OPT_ADVERTISE:
            opt.advertise = optarg;
            break;
        case OPT_CTL:
            opt.ctl = optarg;
            break;
        case OPT_HOST_CONFIG:
            opt.host_config = optarg;
            break;
        case OPT_UNIXCTL:
            opt.unixctl = optarg;
            break;
        case 'h':
            usage();
            break;
        case 'V':
            printf("moatd (Moat) %s\n", MOAT_VERSION);
            exit(EXIT_SUCCESS);
        case 'C':
            if (!strcmp(optarg, "none"))
                ovs_fatal(0, "--ca-cert=none is refused: agents must know each other");
            stream_ssl_set_ca_cert_file(optarg, false);
            break;
        case 'p':
            stream_ssl_set_private_key_file(optarg);
            break;
        case 'c':
            stream_ssl_set_certificate_file(optarg);
            break;
        case OPT_SSL_PROTOCOLS:
            stream_ssl_set_protocols(optarg);
            break;
        case OPT_SSL_CIPHERS:
            stream_ssl_set_ciphers(optarg);
            break;
        VLOG_OPTION_HANDLERS
        DAEMON_OPTION_HANDLERS
        case '?':
        default:
            exit(EXIT_FAILURE);
        }
    }
    free(short_options);
    if (optind < argc)
        ovs_fatal(0, "%s: moatd takes options only; use --help", argv[optind]);
}

static const char *host_name(void)
{
    static char buf[MOAT_ID_MAX];

    if (gethostname(buf, sizeof buf) || !memchr(buf, '\0', sizeof buf))
        ovs_fatal(errno, "no --host, and the system's name cannot be used");
    return buf;
}

static void check_options(void)
{
    if (!opt.db)
        ovs_fatal(0, "--db is missing: where is the Moat database?");
    if (!opt.host)
        opt.host = host_name();
    if (!*opt.host || strlen(opt.host) >= MOAT_ID_MAX)
        ovs_fatal(0, "--host must have 1 to %d characters", MOAT_ID_MAX - 1);
    if (opt.advertise && strncmp(opt.advertise, "ssl:", 4))
        ovs_fatal(0, "--advertise must be ssl:IP:PORT: agents speak TLS only");
    if (opt.listen && strncmp(opt.listen, "pssl:", 5))
        ovs_fatal(0, "--listen must be pssl:PORT[:IP]: agents speak TLS only");
}

static bool is_host(const char *name)
{
    return cluster_is_host(name);
}

static void refused(const char *who, const char *why)
{
    alert(SEV_WARNING, "connection-refused", "", "", "%s: %s", who, why);
}

static const struct peer_ops peer_callbacks = {
    .connected = vnics_peer_connected,
    .frame = vnics_peer_frame,
    .closed = vnics_peer_closed,
    .is_host = is_host,
    .refused = refused,
};

static void cmd_exit(struct unixctl_conn *conn, int argc OVS_UNUSED, const char *argv[] OVS_UNUSED,
                     void *exiting)
{
    *(bool *)exiting = true;
    unixctl_command_reply(conn, NULL);
}

static void cmd_reload(struct unixctl_conn *conn, int argc OVS_UNUSED,
                       const char *argv[] OVS_UNUSED, void *aux OVS_UNUSED)
{
    char *error = host_config_read(opt.host_config);

    if (error)
        unixctl_command_reply_error(conn, error);
    else
        unixctl_command_reply(conn, NULL);
    free(error);
}

static void run(struct unixctl_server *unixctl)
{
    ovsdb_run();
    cluster_run();
    intent_run();
    link_run();
    engine_run();
    peer_run();
    vnics_run();
    taps_run();
    status_run();
    unixctl_server_run(unixctl);
}

static void wait(struct unixctl_server *unixctl)
{
    ovsdb_wait();
    cluster_wait();
    link_wait();
    engine_wait();
    peer_wait();
    vnics_wait();
    taps_wait();
    unixctl_server_wait(unixctl);
}

int main(int argc, char *argv[])
{
    struct unixctl_server *unixctl;
    bool exiting = false;

    /* Not those of the library's build; what the user has set stays.  Before anything
     * reads them: the library remembers them. */
    setenv("OVS_RUNDIR", "/run/moat", 0);
    setenv("OVS_LOGDIR", "/var/log/moat", 0);
    ovs_cmdl_proctitle_init(argc, argv);
    set_program_name(argv[0]);
    service_start(&argc, &argv);
    fatal_ignore_sigpipe();
    parse_options(argc, argv);
    check_options();
    char *error = host_config_read(opt.host_config);
    if (error)
        ovs_fatal(0, "%s", error);
    daemonize_start(true);
    int rc = unixctl_server_create(opt.unixctl, &unixctl);
    if (rc)
        ovs_fatal(rc, "cannot make the control socket");
    unixctl_command_register("exit", "", 0, 0, cmd_exit, &exiting);
    unixctl_command_register("host-config/reload", "", 0, 0, cmd_reload, NULL);
    status_init(opt.host);

    ovsdb_init(opt.ovsdb);
    cluster_init(opt.db, opt.host);
    cluster_host(opt.advertise, MOAT_VERSION);
    link_init();
    vnics_init(opt.host);
    engine_init(opt.ctl, vnics_event);
    rc = peer_init(opt.listen, &peer_callbacks);
    if (rc)
        ovs_fatal(rc, "--listen=%s", opt.listen);
    daemonize_complete();
    VLOG_INFO("moatd %s on host %s", MOAT_VERSION, opt.host);

    while (!exiting) {
        run(unixctl);
        wait(unixctl);
        if (exiting)
            poll_immediate_wake();
        poll_block();
    }
    peer_exit();
    engine_exit();
    vnics_exit();
    taps_exit();
    link_exit();
    intent_exit();
    cluster_exit();
    ovsdb_exit();
    alert_exit();
    host_config_destroy();
    unixctl_server_destroy(unixctl);
    service_stop();
    return 0;
}
