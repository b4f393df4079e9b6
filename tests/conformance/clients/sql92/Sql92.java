import com.alibaba.fastjson2.JSON;
import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import org.apache.rocketmq.broker.filter.MessageEvaluationContext;
import org.apache.rocketmq.common.message.MessageDecoder;
import org.apache.rocketmq.filter.FilterFactory;
import org.apache.rocketmq.filter.expression.Expression;

/** Asks Apache's filter: a line {"expression": …, "messages": [packed properties]} is answered with a line: which pass, or null. */
public final class Sql92 {
    public static void main(String[] args) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            JSONObject question = JSON.parseObject(line);
            System.out.println(answer(question.getString("expression"), question.getJSONArray("messages")));
        }
    }

    private static JSONArray answer(String expression, JSONArray messages) {
        Expression compiled;
        try {
            compiled = FilterFactory.INSTANCE.get("SQL92").compile(expression);
        } catch (Throwable refused) {
            return null;
        }
        JSONArray passes = new JSONArray();
        for (Object packed : messages) {
            passes.add(passes(compiled, (String) packed));
        }
        return passes;
    }

    /** As broker/filter/ExpressionMessageFilter does. */
    private static boolean passes(Expression compiled, String packed) {
        try {
            Object value = compiled.evaluate(new MessageEvaluationContext(MessageDecoder.string2messageProperties(packed)));
            return value instanceof Boolean && (Boolean) value;
        } catch (Throwable failed) {
            return false;
        }
    }
}
