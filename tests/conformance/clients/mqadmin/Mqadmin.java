import com.alibaba.fastjson.JSON;
import com.alibaba.fastjson.JSONObject;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.apache.rocketmq.tools.command.MQAdminStartup;

/**
 * Apache's mqadmin without a JVM per command: {"args": […]} a line on stdin, {"out": "…", "err": "…"} a line on stdout.
 *
 * What a command prints while it runs is its answer; a command that ends the process, as one with wrong options does, ends
 * this one too. Run from its source, with Apache's jars on the class path.
 */
public final class Mqadmin extends MQAdminStartup {
    public static void main(String[] arguments) {
        PrintStream answers = System.out;
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8)).lines().forEach(line -> {
            answers.println(answer(JSON.parseObject(line).getJSONArray("args").toArray(new String[0])));
            answers.flush();
        });
        System.exit(0);
    }

    private static String answer(String[] command) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        ByteArrayOutputStream err = new ByteArrayOutputStream();
        System.setOut(new PrintStream(out, true, StandardCharsets.UTF_8));
        System.setErr(new PrintStream(err, true, StandardCharsets.UTF_8));
        SUB_COMMANDS.clear();  // some keep their client, which is closed after its first use
        main0(command, null);
        JSONObject answer = new JSONObject();
        answer.put("out", out.toString(StandardCharsets.UTF_8));
        answer.put("err", err.toString(StandardCharsets.UTF_8));
        return answer.toJSONString();
    }
}
