import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/** Asks for a half message that was given up to be asked about again: NAMESRV TOPIC ID → true or false; run from its source. */
public final class ResumeCheck {
    public static void main(String[] arguments) throws Exception {
        DefaultMQAdminExt admin = new DefaultMQAdminExt();
        admin.setNamesrvAddr(arguments[0]);
        admin.start();
        System.out.println(admin.resumeCheckHalfMessage(arguments[1], arguments[2]));
        Runtime.getRuntime().halt(0);
    }
}
